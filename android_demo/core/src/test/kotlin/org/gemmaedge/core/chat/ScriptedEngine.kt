package org.gemmaedge.core.chat

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.withContext

/** An engine that does as told and writes down what it was asked. The real one is driven by ci/end_to_end. */
class ScriptedEngine : ChatEngine {
    val calls = mutableListOf<String>()
    var failLoad: (LoadRequest) -> Throwable? = { null }

    /** For each answer in turn: its pieces, and what ends it. */
    val answers = ArrayDeque<Answer>()

    /** Completed, loads go through at once. */
    var gate = CompletableDeferred(Unit)

    /** Completed, a history is read at once. */
    var historyGate = CompletableDeferred(Unit)
    private var isLoaded = false

    private var tools = emptyList<Tool>()

    /** [toolCalls]: what the one tool is called with before. */
    class Answer(val pieces: List<String>, val end: End = End.DONE, val toolCalls: List<String> = emptyList())

    /** [NEVER]: it does not even end when it is cancelled, until [wakeUp]. [FAIL_LATE]: it ends so, and then with an error. */
    enum class End { DONE, FAIL, WAIT_FOR_CANCEL, SILENT, NEVER, FAIL_LATE }

    /** Completed, whatever is stuck goes on. */
    val wakeUp = CompletableDeferred<Unit>()

    /** Whether that does not return, even when cancelled, before [wakeUp]. */
    var isLoadStuck = false
    var isReleaseStuck = false
    var failRelease: Throwable? = null

    override suspend fun load(request: LoadRequest) {
        calls += "load ${request.backends.text}"
        if (isLoadStuck) withContext(NonCancellable) { wakeUp.await() }
        gate.await()
        failLoad(request)?.let { throw it }
        isLoaded = true
    }

    override suspend fun startConversation(settings: ChatSettings, history: List<ChatMessage>, tools: List<Tool>) {
        check(isLoaded) { "no model is loaded" }
        this.tools = tools
        calls += "start [${settings.systemPrompt}] ${history.map { it.text }}"
        historyGate.await()
    }

    override fun send(message: ChatMessage): Flow<String> = flow {
        calls += "send ${message.text}"
        val answer = answers.removeFirst()
        for (arguments in answer.toolCalls) calls += "result " + withContext(Dispatchers.Default) { tools.single().answer(arguments) }
        for (piece in answer.pieces) emit(piece)
        when (answer.end) {
            End.DONE -> Unit
            End.FAIL -> throw IllegalStateException("the engine broke\nat some line")
            End.SILENT -> awaitCancellation()
            End.NEVER, End.FAIL_LATE -> {
                withContext(NonCancellable) { wakeUp.await() }
                calls += "woke up"
                if (answer.end == End.FAIL_LATE) throw IllegalStateException("too late")
            }
            End.WAIT_FOR_CANCEL ->
                try {
                    awaitCancellation()
                } finally {
                    withContext(NonCancellable) { delay(1) } // stopping takes time
                    calls += "stopped"
                }
        }
    }

    /** What each run in turn gives: figures, or what it fails with. Completed, [measureGate] lets them end. */
    val measured = ArrayDeque<Result<EngineTimes>>()
    var measureGate = CompletableDeferred(Unit)

    override suspend fun measure(request: LoadRequest, prefillTokens: Int, decodeTokens: Int): EngineTimes {
        check(!isLoaded) { "a model is loaded" }
        calls += "measure ${request.bundlePath} $prefillTokens $decodeTokens"
        withContext(NonCancellable) { measureGate.await() }
        return measured.removeFirst().getOrThrow()
    }

    override suspend fun release() {
        calls += "release"
        if (isReleaseStuck) withContext(NonCancellable) { wakeUp.await() }
        failRelease?.let { throw it }
        isLoaded = false
    }
}
