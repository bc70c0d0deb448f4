package org.gemmaedge.core.chat

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/**
 * A chat with an engine: takes what the user does, carries it out, and shows the result as [state].
 *
 * It outlives screens: keep it where the process keeps it, and let each screen collect [state]. All functions must be
 * called on the one thread of [scope]'s dispatcher (on Android: the main thread); only the engine works elsewhere.
 *
 * @param clockMs a clock that only goes forward, in milliseconds.
 */
class ChatController(
    private val engine: ChatEngine,
    private val scope: CoroutineScope,
    private val clockMs: () -> Long = { System.nanoTime() / NANOS_PER_MS },
    initial: ChatState = ChatState(),
) {
    private val states = MutableStateFlow(initial)
    private var work: Job? = null

    // The engine's conversation is not the one on the screen: after a load, a cancelled or failed answer, or new settings.
    private var isStale = true

    val state: StateFlow<ChatState> = states.asStateFlow()

    /** Load a model, in place of the one that is loaded. */
    fun load(request: LoadRequest) {
        val former = work
        dispatch(ChatEvent.LoadStarted(request))
        start {
            try {
                former?.join()
                loadOrFallBack(request)
                dispatch(ChatEvent.Loaded)
            } catch (error: Throwable) { // UnsatisfiedLinkError and OutOfMemoryError too: the app goes on without a model
                currentCoroutineContext().ensureActive() // released meanwhile: there is nothing left to say
                dispatch(ChatEvent.LoadFailed(describe(error)))
            }
        }
    }

    /** Send a message; the answer grows in [state]. */
    fun send(text: String, attachments: List<Attachment> = emptyList()) {
        val history = state.value.history
        dispatch(ChatEvent.Sent(text, attachments))
        start { answer(ChatMessage(Role.USER, text, attachments), history) }
    }

    /** Stop the answer that is being written; it stays as far as it came. */
    fun cancel() {
        check(state.value.canCancel) { "nothing to cancel in ${state.value.phase}" }
        work?.cancel()
    }

    /** Begin a new conversation with the same model. */
    fun newConversation() {
        dispatch(ChatEvent.Cleared)
        isStale = true
    }

    /** Apply settings from the next message on; the engine then reads the conversation again. */
    fun change(settings: ChatSettings) {
        dispatch(ChatEvent.SettingsChanged(settings))
        isStale = true
    }

    /** The user has seen the notice. */
    fun noticeRead() = dispatch(ChatEvent.NoticeRead)

    /**
     * Free the model's memory; the chat stays. An answer that is being written ends where it is.
     *
     * [forMemory]: the system is short of memory; the user is told so.
     */
    fun release(forMemory: Boolean) {
        val running = work
        dispatch(ChatEvent.Released(forMemory))
        running?.cancel()
        start {
            running?.join()
            engine.release()
        }
    }

    private suspend fun loadOrFallBack(request: LoadRequest) {
        isStale = true
        try {
            engine.release()
            engine.load(request)
        } catch (error: Throwable) {
            fallBack(request, error)
        }
    }

    /** Load on the CPU what failed with [error]; throws it where there is nothing else to try. */
    private suspend fun fallBack(request: LoadRequest, error: Throwable) {
        currentCoroutineContext().ensureActive()
        val backends = request.backends.fallback ?: throw error
        dispatch(ChatEvent.FellBack(backends, describe(error)))
        val fallen = state.value.loaded!!
        isStale = true
        engine.release()
        if (state.value.loaded !== fallen) currentCoroutineContext().ensureActive() // released meanwhile
        // To the end, even where the user stops the answer: state shows a model, and it has to be there.
        withContext(NonCancellable) { engine.load(fallen) }
        currentCoroutineContext().ensureActive()
    }

    private suspend fun answer(message: ChatMessage, history: List<ChatMessage>) {
        val timer = Timer()
        val end =
            try {
                streamOrFallBack(message, history, timer)
                ChatEvent.Answered(timer.stats())
            } catch (error: Throwable) {
                isStale = true
                val wanted = error is CancellationException || !currentCoroutineContext().isActive
                if (wanted) ChatEvent.Cancelled(timer.stats()) else ChatEvent.GenerationFailed(describe(error))
            }
        if (state.value.phase == Phase.GENERATING) dispatch(end) // otherwise a release has ended it
    }

    private suspend fun streamOrFallBack(message: ChatMessage, history: List<ChatMessage>, timer: Timer) {
        try {
            stream(message, history, timer)
        } catch (error: Throwable) {
            // A GPU may turn out to be unusable only when it is first used.
            if (timer.tokens > 0 || error is CancellationException) throw error
            fallBack(state.value.loaded ?: throw error, error)
            stream(message, history, timer)
        }
    }

    private suspend fun stream(message: ChatMessage, history: List<ChatMessage>, timer: Timer) {
        if (isStale) {
            isStale = false // before: while the history is read, settings may change, and the next message begins anew
            engine.startConversation(state.value.settings, history)
        }
        engine.send(message).collect { piece ->
            timer.count()
            dispatch(ChatEvent.Wrote(piece))
        }
    }

    /** Undispatched: [action] has entered its own try before anybody can cancel it. */
    private fun start(action: suspend () -> Unit) {
        work = scope.launch(start = CoroutineStart.UNDISPATCHED) { action() }
    }

    private fun dispatch(event: ChatEvent) {
        states.value = states.value.after(event)
    }

    private inner class Timer {
        var tokens = 0
            private set
        private val startedMs = clockMs()
        private var firstMs = startedMs

        fun count() {
            if (tokens++ == 0) firstMs = clockMs()
        }

        fun stats() = GenerationStats(tokens, firstMs - startedMs, clockMs() - startedMs)
    }

    private companion object {
        const val NANOS_PER_MS = 1_000_000

        fun describe(error: Throwable): String =
            error.message?.lineSequence()?.firstOrNull { it.isNotBlank() } ?: error::class.java.simpleName
    }
}
