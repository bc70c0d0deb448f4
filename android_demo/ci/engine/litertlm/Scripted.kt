package com.google.ai.edge.litertlm

import java.util.concurrent.CancellationException
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.CountDownLatch
import kotlin.concurrent.thread

/**
 * LiteRT-LM without a model: it writes what [answers] say, from a thread of its own, and insists on what the real one
 * insists on (Engine.kt and Conversation.kt of google-ai-edge/LiteRT-LM). Only for tests of engine/; never packaged.
 */
object Script {
    /** What was done to it, in order. */
    val calls = CopyOnWriteArrayList<String>()
    val answers = ArrayDeque<Answer>()
    var loadError: Throwable? = null

    /** What a GPU without OpenCL says when it is first used. */
    var firstReplyError: Throwable? = null

    fun reset() {
        calls.clear()
        answers.clear()
        loadError = null
        firstReplyError = null
    }
}

/**
 * [error] null: the answer ends by itself. [isEndless]: it goes on until it is cancelled, and then takes until
 * [mayEnd] to leave the native code. [calls]: the tools, by place, that the model calls before, and with what.
 */
class Answer(
    val pieces: List<String>,
    val error: Throwable? = null,
    val isEndless: Boolean = false,
    val mayEnd: CountDownLatch = CountDownLatch(0),
    val calls: List<Pair<Int, String>> = emptyList(),
)

class Engine(val engineConfig: EngineConfig) : AutoCloseable {
    private var isAlive = false

    fun isInitialized(): Boolean = isAlive

    fun initialize() {
        check(!isAlive) { "Engine is already initialized." }
        val names = listOf(engineConfig.backend, engineConfig.visionBackend, engineConfig.audioBackend).map { it?.name }
        Script.calls += "load ${engineConfig.modelPath} $names ${engineConfig.cacheDir}"
        Script.loadError?.let { throw it }
        isAlive = true
    }

    fun createConversation(conversationConfig: ConversationConfig = ConversationConfig()): Conversation {
        check(isAlive) { "Engine is not initialized." }
        with(conversationConfig) {
            val described = tools.map { it.tool.getToolDescriptionJsonString() }
            Script.calls += "start system=$systemInstruction $initialMessages $samplerConfig max=$maxOutputToken " +
                "prefill=$prefillPrefaceOnInit tools=$described drafts=$enableSpeculativeDecoding"
            return Conversation(tools)
        }
    }

    override fun close() {
        check(isAlive) { "Engine is not initialized." }
        isAlive = false
        Script.calls += "close engine"
    }
}

class Conversation internal constructor(private val tools: List<ToolProvider>) : AutoCloseable {
    private val cancelled = CountDownLatch(1)
    private var writing: Thread? = null
    private var isAlive = true

    fun sendMessage(text: String): Message {
        check(isAlive) { "Conversation is not alive." }
        Script.calls += "ask $text"
        Script.firstReplyError?.let { throw it }
        return Message(Role.MODEL, Contents.of(""))
    }

    fun sendMessageAsync(contents: Contents, callback: MessageCallback) {
        check(isAlive) { "Conversation is not alive." }
        Script.calls += "send $contents"
        val answer = Script.answers.removeFirst()
        writing = thread {
            for ((number, arguments) in answer.calls) Script.calls += "result " + tools[number].tool.execute(arguments)
            for (piece in answer.pieces) callback.onMessage(Message(Role.MODEL, Contents.of(piece)))
            if (answer.isEndless) {
                cancelled.await()
                answer.mayEnd.await()
                Script.calls += "ended"
                callback.onError(CancellationException("Process cancelled."))
            } else {
                answer.error?.let(callback::onError) ?: callback.onDone()
            }
        }
    }

    fun cancelProcess() {
        check(isAlive) { "Conversation is not alive." }
        Script.calls += "cancel"
        cancelled.countDown()
    }

    override fun close() {
        check(isAlive) { "Conversation is closed already." }
        writing?.join(CLOSE_WAIT_MS)
        check(writing?.isAlive != true) { "closed while it was writing" }
        isAlive = false
        Script.calls += "close conversation"
    }

    private companion object {
        const val CLOSE_WAIT_MS = 1_000L // a thread that has called back needs a moment to end
    }
}

interface MessageCallback {
    fun onMessage(message: Message)

    fun onDone()

    fun onError(throwable: Throwable)
}

enum class Role { SYSTEM, USER, MODEL, TOOL }

data class ToolCall(val name: String, val arguments: Map<String, Any?>)

interface OpenApiTool {
    fun getToolDescriptionJsonString(): String

    fun execute(paramsJsonString: String): String
}

class ToolProvider internal constructor(internal val tool: OpenApiTool)

fun tool(openApiTool: OpenApiTool) = ToolProvider(openApiTool)

@RequiresOptIn
annotation class ExperimentalApi

class BenchmarkInfo(
    val initTimeInSecond: Double,
    val timeToFirstTokenInSecond: Double,
    val lastPrefillTokensPerSecond: Double,
    val lastDecodeTokensPerSecond: Double,
)

@ExperimentalApi
fun benchmark(modelPath: String, backend: Backend, prefillTokens: Int, decodeTokens: Int, cacheDir: String?): BenchmarkInfo {
    Script.calls += "benchmark $modelPath ${backend.name} $prefillTokens $decodeTokens $cacheDir"
    return BenchmarkInfo(1.0, 2.0, 3.0, 4.0)
}

class Message internal constructor(private val role: Role, private val contents: Contents) {
    /** As LiteRT-LM's: the text alone. In [Script.calls], histories are told apart by [Contents]. */
    override fun toString(): String = contents.toString()

    companion object {
        fun user(contents: Contents) = Message(Role.USER, Contents.of(listOf(Content.Text("user:")) + contents.contents))

        fun model(contents: Contents = Contents.of(emptyList()), toolCalls: List<ToolCall> = emptyList()) =
            Message(Role.MODEL, Contents.of(listOf(Content.Text("model:$toolCalls")) + contents.contents))

        fun tool(contents: Contents) = Message(Role.TOOL, Contents.of(listOf(Content.Text("tool:")) + contents.contents))
    }
}

class Contents private constructor(val contents: List<Content>) {
    override fun toString(): String = contents.joinToString("")

    companion object {
        fun of(text: String) = Contents(listOf(Content.Text(text)))

        fun of(contents: List<Content>) = Contents(contents)
    }
}

sealed class Content {
    data class Text(val text: String) : Content() {
        override fun toString(): String = text
    }

    data class ImageFile(val absolutePath: String) : Content()

    data class AudioFile(val absolutePath: String) : Content()

    data class ToolResponse(val name: String, val response: Any?) : Content()
}

sealed class Backend(val name: String) {
    data class CPU(val threadCount: Int? = null) : Backend("CPU")

    class GPU : Backend("GPU")
}

class EngineConfig(
    val modelPath: String,
    val backend: Backend,
    val visionBackend: Backend?,
    val audioBackend: Backend?,
    val cacheDir: String?,
)

class ConversationConfig(
    val systemInstruction: Contents? = null,
    val initialMessages: List<Message> = listOf(),
    val samplerConfig: SamplerConfig? = null,
    val prefillPrefaceOnInit: Boolean = false,
    val maxOutputToken: Int? = null,
    val tools: List<ToolProvider> = listOf(),
    val enableSpeculativeDecoding: Boolean? = null,
) {
    init {
        require(maxOutputToken == null || maxOutputToken > 0)
    }
}

data class SamplerConfig(val topK: Int, val topP: Double, val temperature: Double, val seed: Int = 0) {
    init {
        require(topK > 0)
        require(topP >= 0 && topP <= 1)
        require(temperature >= 0)
    }
}
