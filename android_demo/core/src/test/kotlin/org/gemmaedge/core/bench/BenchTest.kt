package org.gemmaedge.core.bench

import java.util.concurrent.atomic.AtomicLong
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.chat.ChatController
import org.gemmaedge.core.chat.EngineTimes
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.chat.MeasureRequest
import org.gemmaedge.core.chat.ScriptedEngine
import org.gemmaedge.core.json.Json
import org.gemmaedge.core.memory.ProcessMemory
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class BenchTest {
    private val engine = ScriptedEngine()
    private val held = AtomicLong(5)
    private val request = MeasureRequest(LoadRequest("m.litertlm"), 256, 64)

    private fun test(action: suspend CoroutineScope.(Bench, ChatController) -> Unit) = runBlocking<Unit> {
        withTimeout(60_000) {
            val chat = ChatController(engine, this)
            action(Bench(chat, this) { ProcessMemory(held.get(), 2 * held.get()) }, chat)
        }
    }

    private suspend fun Bench.end() = state.first { it !is BenchState.Running && it !is BenchState.Idle }

    private fun gives(vararg seconds: Double) =
        engine.measured.addAll(seconds.map { Result.success(EngineTimes(it, it + 1, it + 2, it + 3)) })

    @Test
    fun `runs are measured one after the other, each with its own peak`() = test { bench, _ ->
        gives(1.0, 2.0)
        engine.measureGate = CompletableDeferred()
        bench.start("m", request, runs = 2)
        assertEquals(BenchState.Running("m", 2, 0, isStopping = false), bench.state.value)
        engine.measureGate.complete(Unit)
        val runs = (bench.end() as BenchState.Done).runs
        assertEquals(listOf(Measurement(1.0, 2.0, 3.0, 4.0, 5, 10, 15), Measurement(2.0, 3.0, 4.0, 5.0, 5, 10, 15)), runs)
    }

    @Test
    fun `a peak in the middle of a run is seen`() = test { bench, _ ->
        gives(1.0)
        engine.measureGate = CompletableDeferred()
        held.set(50)
        bench.start("m", request, runs = 1)
        val seen = System.nanoTime() + 200_000_000
        while (System.nanoTime() < seen) yield()
        held.set(5)
        engine.measureGate.complete(Unit)
        assertEquals(50, (bench.end() as BenchState.Done).runs.single().anonBytes)
    }

    @Test
    fun `stopped, it keeps what it has`() = test { bench, chat ->
        gives(1.0, 2.0, 3.0)
        engine.measureGate = CompletableDeferred()
        bench.start("m", request, runs = 3)
        bench.stop()
        assertTrue((bench.state.value as BenchState.Running).isStopping)
        bench.start("n", request, runs = 1) // nothing happens
        engine.measureGate.complete(Unit)
        val done = bench.end() as BenchState.Done
        assertEquals("m" to 1, done.name to done.runs.size) // the one that was under way
        chat.load(request.load)
    }

    @Test
    fun `a failure is told`() = test { bench, _ ->
        engine.measured += Result.failure(IllegalStateException("broken"))
        bench.start("m", request, runs = 3)
        assertEquals(BenchState.Failed("m", "broken"), bench.end())
    }

    @Test
    fun `medians and JSON are gemma-edge bench's`() {
        val expected = Vectors.json("bench.json")
        val runs = expected["runs"].items.map {
            Measurement(
                it["init_s"].double, it["time_to_first_token_s"].double,
                it["prefill_tokens_per_s"].double, it["decode_tokens_per_s"].double,
                it["anon_bytes"].long, it["file_bytes"].long, it["total_bytes"].long,
            )
        }
        assertEquals(inDoubles(expected.plain), inDoubles(Json.parse(Measurement.toJson(runs)).plain))
    }

    /** Python's median of whole bytes may be 2.0. */
    private fun inDoubles(value: Any?): Any? = when (value) {
        is Map<*, *> -> value.mapValues { inDoubles(it.value) }
        is List<*> -> value.map(::inDoubles)
        else -> (value as Number).toDouble()
    }
}
