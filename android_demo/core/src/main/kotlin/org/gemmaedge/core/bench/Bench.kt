package org.gemmaedge.core.bench

import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch
import org.gemmaedge.core.chat.ChatController
import org.gemmaedge.core.chat.EngineTimes
import org.gemmaedge.core.chat.MeasureRequest
import org.gemmaedge.core.memory.ProcessMemory

/** What a benchmark is doing. [name]: of the model. */
sealed interface BenchState {
    data object Idle : BenchState

    /** [done] of [runs] are over; [isStopping]: the one under way is the last. */
    data class Running(val name: String, val runs: Int, val done: Int, val isStopping: Boolean) : BenchState

    /** [runs] may be fewer than were asked for. */
    data class Done(val name: String, val runs: List<Measurement>) : BenchState

    data class Failed(val name: String, val message: String) : BenchState
}

/**
 * A benchmark of a model, in the figures and the form of `gemma-edge bench --json`.
 *
 * The chat's model is unloaded first: two do not fit into memory. All functions belong to the controller's thread.
 *
 * @param memory what the process holds at this moment; null where the system does not tell.
 */
class Bench(
    private val controller: ChatController,
    private val scope: CoroutineScope,
    private val memory: () -> ProcessMemory? = { ProcessMemory.read() },
) {
    private val states = MutableStateFlow<BenchState>(BenchState.Idle)
    private var isStopping = false

    val state: StateFlow<BenchState> = states.asStateFlow()
    val isRunning: Boolean get() = states.value is BenchState.Running

    /** Nothing happens where the engine has something else to do. */
    fun start(name: String, request: MeasureRequest, runs: Int) {
        require(runs >= 1) { "runs is $runs, expected at least 1" }
        if (!controller.state.value.canLoad) return
        isStopping = false
        val measured = mutableListOf<Measurement>()
        fun show() {
            states.value = BenchState.Running(name, runs, measured.size, isStopping)
        }
        val peak = Peak()
        val sampling = sample(peak)
        show()
        controller.measure(
            request,
            mayGoOn = { !isStopping && measured.size < runs },
            onRun = { times ->
                peak.note(memory())
                measured += measurement(times, peak)
                peak.forget()
                show()
            },
            onEnd = { error ->
                sampling.cancel()
                states.value = if (error == null) BenchState.Done(name, measured) else BenchState.Failed(name, "${error.message}")
            },
        )
    }

    /** After the run that is under way: none can be interrupted. */
    fun stop() {
        val running = states.value as? BenchState.Running ?: return
        isStopping = true
        states.value = running.copy(isStopping = true)
    }

    private fun sample(peak: Peak): Job = scope.launch(Dispatchers.Default) {
        while (isActive) {
            peak.note(memory())
            delay(SAMPLE_MS)
        }
    }

    private fun measurement(times: EngineTimes, peak: Peak) = with(times) {
        Measurement(initSeconds, firstTokenSeconds, prefillTokensPerSecond, decodeTokensPerSecond, peak.anon, peak.file, peak.total)
    }

    /** Of each kind of memory by itself, as runtime/memory/reading.py has it. */
    private class Peak {
        var anon = 0L
            private set
        var file = 0L
            private set
        var total = 0L
            private set

        @Synchronized
        fun note(memory: ProcessMemory?) {
            if (memory == null) return
            anon = maxOf(anon, memory.anonBytes)
            file = maxOf(file, memory.fileBytes)
            total = maxOf(total, memory.anonBytes + memory.fileBytes)
        }

        @Synchronized
        fun forget() {
            anon = 0
            file = 0
            total = 0
        }
    }

    private companion object {
        const val SAMPLE_MS = 50L
    }
}
