package org.gemmaedge.core.chat

import kotlinx.coroutines.flow.Flow

/** Where a part of the model runs. */
enum class Accelerator { CPU, GPU }

/** One choice for each part; null for a part that the bundle lacks or that is not to be loaded. */
data class Backends(
    val text: Accelerator = Accelerator.CPU,
    val vision: Accelerator? = null,
    val audio: Accelerator? = null,
) {
    /** What to try where this fails: everything on the CPU, or nothing more. */
    val fallback: Backends?
        get() = Backends(Accelerator.CPU, vision?.let { Accelerator.CPU }, audio?.let { Accelerator.CPU }).takeIf { it != this }
}

/** What to load. [cacheDir]: where the engine keeps repacked weights. [drafts]: decode speculatively, with the bundle's drafter. */
data class LoadRequest(
    val bundlePath: String,
    val backends: Backends = Backends(),
    val cacheDir: String? = null,
    val drafts: Boolean = false,
)

/** What to measure: a prompt of [prefillTokens], then [decodeTokens] steps. */
data class MeasureRequest(val load: LoadRequest, val prefillTokens: Int, val decodeTokens: Int)

/** What an engine measured of itself. [firstTokenSeconds]: of the prompt and one step. */
data class EngineTimes(
    val initSeconds: Double,
    val firstTokenSeconds: Double,
    val prefillTokensPerSecond: Double,
    val decodeTokensPerSecond: Double,
)

/**
 * What runs a model: LiteRT-LM on a phone (engine/), the same library through its C interface in the JVM tests.
 *
 * One conversation at a time. Calls come one after the other, never concurrently; each moves its work off the caller's
 * thread. Failures are thrown as they come, [ChatController] words them. A call need not return: [EngineCalls] waits for
 * none without end.
 */
interface ChatEngine {
    /** Load a model; the former one has been released. Takes seconds. */
    suspend fun load(request: LoadRequest)

    /**
     * Begin anew with what was said before. The former conversation ends.
     *
     * [history] alternates between user and model, beginning with the user, and ends with the model. [tools]: what the
     * model may call; the engine runs them, by [Tool.answer], and lets the model go on.
     */
    suspend fun startConversation(settings: ChatSettings, history: List<ChatMessage>, tools: List<Tool>)

    /**
     * Answer a message: each element is what one decoding step wrote.
     *
     * Cancelling the collection stops the native generation, and the collection ends only when it has stopped: nothing
     * else may be called before.
     */
    fun send(message: ChatMessage): Flow<String>

    /** One run of a benchmark, greedy, with a model of its own: nothing is loaded before or after. Cannot be interrupted. */
    suspend fun measure(request: LoadRequest, prefillTokens: Int, decodeTokens: Int): EngineTimes

    /** Free everything. Nothing happens where nothing is loaded. */
    suspend fun release()
}
