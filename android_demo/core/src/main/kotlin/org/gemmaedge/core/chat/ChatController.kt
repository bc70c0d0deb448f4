package org.gemmaedge.core.chat

import java.util.concurrent.ConcurrentLinkedQueue
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.completeWith
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.json.Json

/**
 * A chat with an engine: takes what the user does, carries it out, and shows the result as [state].
 *
 * It outlives screens: keep it where the process keeps it, and let each screen collect [state]. All functions must be
 * called on the one thread of [scope]'s dispatcher (on Android: the main thread); only the engine works elsewhere.
 *
 * @param clockMs a clock that only goes forward, in milliseconds.
 * @param patience after which an engine that says nothing is given up.
 * @param tools what a model may call where [ChatSettings.usesTools] says so.
 */
class ChatController(
    private val engine: ChatEngine,
    private val scope: CoroutineScope,
    private val clockMs: () -> Long = { System.nanoTime() / NANOS_PER_MS },
    initial: ChatState = ChatState(),
    private val patience: Patience = Patience(),
    private val tools: List<Tool> = emptyList(),
) {
    private val states = MutableStateFlow(initial)
    private val calls: EngineCalls = EngineCalls(scope, patience, onReturn = ::engineReturned)
    private var work: Job? = null
    @Volatile private var answering = Timer() // tools look, on threads of the engine
    private val called = ConcurrentLinkedQueue<Pair<Timer, ToolCall>>()

    // The engine's conversation is not the one on the screen: after a load, a cancelled or failed answer, or new settings.
    private var isStale = true

    // How often the engine got stuck: what had been asked of it by then is void.
    private var timesStuck = 0

    val state: StateFlow<ChatState> = states.asStateFlow()

    /** Load a model, in place of the one that is loaded. */
    fun load(request: LoadRequest) {
        dispatch(ChatEvent.LoadStarted(request))
        start(failed = { ChatEvent.LoadFailed(describe(it)) }) {
            loadOrFallBack(request)
            dispatch(ChatEvent.Loaded)
        }
    }

    /** Send a message; the answer grows in [state]. */
    fun send(text: String, attachments: List<Attachment> = emptyList()) {
        val history = state.value.history
        dispatch(ChatEvent.Sent(text, attachments))
        val timer = Timer().also { answering = it }
        val failed = { error: Throwable ->
            if (error is CancellationException) ChatEvent.Cancelled(timer.stats()) else ChatEvent.GenerationFailed(describe(error))
        }
        start(failed) {
            streamOrFallBack(ChatMessage(Role.USER, text, attachments), history, timer)
            dispatch(ChatEvent.Answered(timer.stats()))
        }
    }

    /** Ask the question at [index] anew, in other words; what was said after it is gone. */
    fun edit(index: Int, text: String) {
        val former = state.value.messages[index]
        check(former.role == Role.USER) { "message $index is the model's" }
        dispatch(ChatEvent.Rewound(index))
        isStale = true
        send(text, former.attachments)
    }

    /** Have the last question answered again. With a fixed seed and the same settings, the answer is the same. */
    fun regenerate() {
        val index = state.value.messages.indexOfLast { it.role == Role.USER }
        edit(index, state.value.messages[index].text)
    }

    /** Stop the answer that is being written, at once; it stays as far as it came. Behind it, the engine ends its step. */
    fun cancel() {
        check(state.value.canCancel) { "nothing to cancel in ${state.value.phase}" }
        isStale = true
        showCalls()
        dispatch(ChatEvent.Cancelled(answering.stats()))
        work?.cancel()
    }

    /** Begin a new chat with the same model. */
    fun newConversation(id: String = "") {
        dispatch(ChatEvent.Cleared(id))
        isStale = true
    }

    /** Go on with another chat. Not while an answer is being written. */
    fun open(chat: ChatState) {
        dispatch(ChatEvent.Opened(chat))
        isStale = true
    }

    fun rename(title: String) = dispatch(ChatEvent.Renamed(title))

    /** Show something that is not about the engine. */
    fun tell(notice: Notice) = dispatch(ChatEvent.Told(notice))

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
        dispatch(ChatEvent.Released(forMemory))
        if (state.value.phase == Phase.STUCK) return
        work?.cancel()
        start(failed = { ChatEvent.ReleaseFailed(describe(it)) }) { releaseEngine() }
    }

    /**
     * Unload the model and have the engine measure [request] instead; the chat stays. [mayGoOn] is asked before each run:
     * one that has begun cannot be interrupted. [onEnd] gets what it failed with.
     */
    fun measure(request: MeasureRequest, mayGoOn: () -> Boolean, onRun: (EngineTimes) -> Unit, onEnd: (Throwable?) -> Unit) {
        dispatch(ChatEvent.MeasureStarted)
        isStale = true
        startFor(onEnd, ended = ChatEvent.MeasureEnded) {
            releaseEngine()
            while (mayGoOn()) {
                var times: EngineTimes? = null
                calls.call("measure the model", patience.measureMs, stopMs = patience.measureMs) {
                    times = engine.measure(request.load, request.prefillTokens, request.decodeTokens)
                }
                onRun(times!!)
            }
        }
    }

    /**
     * Answer somebody else, with the model that is loaded. The chat on the screen waits and stays as it is; its
     * conversation is read again afterwards. Throws [EngineBusy], and what the engine throws.
     */
    suspend fun answer(settings: ChatSettings, history: List<ChatMessage>, message: ChatMessage, onPiece: (String) -> Unit) {
        if (!state.value.canSend) throw EngineBusy(if (state.value.loaded == null) "no model is loaded" else "the model is busy")
        dispatch(ChatEvent.ServeStarted)
        isStale = true
        val outcome = CompletableDeferred<Unit>()
        val job = startFor({ outcome.completeWith(it?.let { Result.failure(it) } ?: Result.success(Unit)) }, ended = ChatEvent.ServeEnded) {
            readConversation(settings, history, emptyList())
            calls.collect("write an answer", engine.send(message), onPiece)
        }
        try {
            outcome.await()
        } finally { // whoever asked may be gone
            if (job.isActive && state.value.phase == Phase.SERVING) dispatch(ChatEvent.ServeEnded)
            job.cancel()
        }
    }

    private suspend fun loadOrFallBack(request: LoadRequest) {
        isStale = true
        try {
            releaseEngine()
            loadEngine(request)
        } catch (error: Throwable) {
            fallBack(request, error)
        }
    }

    /** Load on the CPU what failed with [error]; throws it where there is nothing else to try. */
    private suspend fun fallBack(request: LoadRequest, error: Throwable) {
        currentCoroutineContext().ensureActive()
        val backends = request.backends.fallback
        if (backends == null || error is EngineStuck) throw error
        dispatch(ChatEvent.FellBack(backends, describe(error)))
        val fallen = state.value.loaded!!
        isStale = true
        // To the end, even where the user stops the answer: state shows a model, and it has to be there.
        withContext(NonCancellable) {
            releaseEngine()
            if (state.value.loaded === fallen) loadEngine(fallen) // otherwise released meanwhile
        }
        currentCoroutineContext().ensureActive()
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
            val settings = state.value.settings
            readConversation(settings, history, if (settings.usesTools) tools.map(::noted) else emptyList())
        }
        calls.collect("write an answer", engine.send(message)) { piece ->
            timer.count()
            showCalls()
            dispatch(ChatEvent.Wrote(piece))
        }
        showCalls()
    }

    /** One call into native code, that ends when it has read. */
    private suspend fun readConversation(settings: ChatSettings, history: List<ChatMessage>, tools: List<Tool>): Unit =
        calls.call("read the conversation", patience.firstPieceMs, stopMs = patience.firstPieceMs) {
            engine.startConversation(settings, history, tools)
        }

    /** Shows with the answer that is being written what the model had [tool] do. */
    private fun noted(tool: Tool): Tool = object : Tool by tool {
        override fun run(arguments: Json): String {
            val answer = answering
            val result = runCatching { tool.run(arguments) }
            called += answer to ToolCall(tool.name, arguments.toString(), result.getOrElse { "error: ${it.message}" })
            scope.launch { showCalls() }
            return result.getOrThrow()
        }
    }

    /** Also before what comes after a call: that may overtake the launch above. */
    private fun showCalls() {
        while (true) {
            val (answer, call) = called.poll() ?: break
            if (answer === answering && state.value.phase == Phase.GENERATING) dispatch(ChatEvent.Called(call))
        }
    }

    /** A load is one call into native code, and ends when it has loaded. */
    private suspend fun loadEngine(request: LoadRequest): Unit =
        calls.call("load the model", patience.loadMs, stopMs = patience.loadMs) { engine.load(request) }

    private suspend fun releaseEngine(): Unit = calls.call("unload the model", patience.releaseMs) { engine.release() }

    /** Called long after it was given up. What it holds is unknown, so it begins anew. */
    private fun engineReturned(): Unit = start(failed = { ChatEvent.ReleaseFailed(describe(it)) }, evenIfStuck = true) {
        isStale = true
        releaseEngine()
        dispatch(ChatEvent.CameBack)
    }

    /**
     * After all that was started before. Undispatched: it has entered its try before anybody can cancel it.
     *
     * Where it is cancelled, whoever did so has told [state]; where it fails, [failed] does.
     */
    private fun start(failed: (Throwable) -> ChatEvent, evenIfStuck: Boolean = false, action: suspend () -> Unit) {
        val former = work
        val timesStuckBefore = timesStuck
        work = scope.launch(start = CoroutineStart.UNDISPATCHED) {
            try {
                withContext(NonCancellable) { former?.join() } // EngineCalls sees to it that it ends
                currentCoroutineContext().ensureActive()
                if (timesStuck == timesStuckBefore || evenIfStuck) action()
            } catch (error: EngineStuck) {
                timesStuck++
                dispatch(ChatEvent.Stuck(describe(error)))
            } catch (error: Throwable) { // UnsatisfiedLinkError and OutOfMemoryError too: the app goes on without a model
                isStale = true
                currentCoroutineContext().ensureActive()
                dispatch(failed(error))
            }
        }
    }

    /** As [start], for somebody who wants to know how it ended: [onEnd] is called once, [ended] happens where it still can. */
    private fun startFor(onEnd: (Throwable?) -> Unit, ended: ChatEvent, action: suspend () -> Unit): Job {
        var failure: Throwable? = EngineBusy("the model was unloaded")
        start(failed = { ended }) {
            try {
                action()
                failure = null
            } catch (error: Throwable) {
                if (error !is CancellationException) failure = error
                throw error
            }
            dispatch(ended)
        }
        return work!!.apply { invokeOnCompletion { onEnd(failure) } }
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
