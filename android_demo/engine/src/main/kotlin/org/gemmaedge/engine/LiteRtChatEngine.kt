package org.gemmaedge.engine

import com.google.ai.edge.litertlm.Backend
import com.google.ai.edge.litertlm.Content
import com.google.ai.edge.litertlm.Contents
import com.google.ai.edge.litertlm.Conversation
import com.google.ai.edge.litertlm.ConversationConfig
import com.google.ai.edge.litertlm.Engine
import com.google.ai.edge.litertlm.EngineConfig
import com.google.ai.edge.litertlm.ExperimentalApi
import com.google.ai.edge.litertlm.Message
import com.google.ai.edge.litertlm.MessageCallback
import com.google.ai.edge.litertlm.OpenApiTool
import com.google.ai.edge.litertlm.SamplerConfig
import com.google.ai.edge.litertlm.ToolCall
import com.google.ai.edge.litertlm.benchmark
import com.google.ai.edge.litertlm.tool
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.withContext
import org.gemmaedge.core.chat.Accelerator
import org.gemmaedge.core.chat.Attachment
import org.gemmaedge.core.chat.ChatEngine
import org.gemmaedge.core.chat.ChatMessage
import org.gemmaedge.core.chat.ChatSettings
import org.gemmaedge.core.chat.EngineTimes
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.chat.Tool
import org.gemmaedge.core.chat.answer
import org.gemmaedge.core.json.Json

/**
 * Chats through LiteRT-LM. The only module of the demo that knows its classes.
 *
 * Native objects are freed by close(), exactly once: a second close(), and one of an engine that failed to initialize,
 * throw. So a field holds an object only while it lives.
 */
class LiteRtChatEngine(private val dispatcher: CoroutineDispatcher = Dispatchers.IO) : ChatEngine {
    private var engine: Engine? = null
    private var conversation: Conversation? = null
    private var drafts = false

    override suspend fun load(request: LoadRequest) = withContext(dispatcher) {
        val loaded = Engine(engineConfig(request))
        loaded.initialize()
        engine = loaded
        drafts = request.drafts
        if (request.backends.text == Accelerator.GPU) writeOneToken(loaded)
    }

    override suspend fun startConversation(settings: ChatSettings, history: List<ChatMessage>, tools: List<Tool>) =
        withContext(dispatcher) {
            closeConversation()
            val loaded = checkNotNull(engine) { "no model is loaded" }
            conversation = loaded.createConversation(conversationConfig(settings, history, tools, drafts))
        }

    override fun send(message: ChatMessage): Flow<String> = flow {
        val talking = checkNotNull(conversation) { "no conversation was started" }
        val pieces = Channel<String>(Channel.UNLIMITED)
        val ended = CompletableDeferred<Unit>()
        talking.sendMessageAsync(
            contentsOf(message),
            object : MessageCallback { // called from native threads, one call after the other
                private var isEmpty = true

                override fun onMessage(message: Message) {
                    isEmpty = false
                    pieces.trySend(message.toString())
                }

                override fun onDone() = end(null)

                override fun onError(throwable: Throwable) = end(throwable.takeIf { isEmpty || !isLengthLimit(it) })

                private fun end(cause: Throwable?) {
                    ended.complete(Unit) // before the collector can see the end of the pieces
                    pieces.close(cause)
                }
            },
        )
        try {
            for (piece in pieces) emit(piece)
        } finally {
            // Native threads must be out of the conversation before anybody closes it or sends the next message.
            // Where cancelling throws, they are still in it: the end is waited for all the same, by a caller who gives up in time.
            if (!ended.isCompleted) runCatching { talking.cancelProcess() }
            withContext(NonCancellable) { ended.await() }
        }
    }.flowOn(dispatcher)

    /** As Google's own benchmark does it: a made-up prompt, and stop tokens that do not stop. */
    @OptIn(ExperimentalApi::class)
    override suspend fun measure(request: LoadRequest, prefillTokens: Int, decodeTokens: Int) = withContext(dispatcher) {
        val info = benchmark(request.bundlePath, backendOf(request.backends.text), prefillTokens, decodeTokens, request.cacheDir)
        with(info) {
            EngineTimes(initTimeInSecond, timeToFirstTokenInSecond, lastPrefillTokensPerSecond, lastDecodeTokensPerSecond)
        }
    }

    override suspend fun release() = withContext(NonCancellable + dispatcher) {
        closeConversation()
        val loaded = engine
        engine = null
        loaded?.close() ?: Unit
    }

    private fun closeConversation() {
        val closing = conversation
        conversation = null
        closing?.close()
    }

    /** A GPU without OpenCL loads a model and fails when it first computes. Better while there is a load to fail. */
    private fun writeOneToken(loaded: Engine) {
        loaded.createConversation(ConversationConfig(maxOutputToken = 1)).use { it.sendMessage("Hello") }
    }
}

/** How an answer ends that fills the context, or is as long as it may be. */
private fun isLengthLimit(error: Throwable) = "Max number of tokens reached" in error.message.orEmpty()

private fun engineConfig(request: LoadRequest) = EngineConfig(
    modelPath = request.bundlePath,
    backend = backendOf(request.backends.text),
    visionBackend = request.backends.vision?.let(::backendOf),
    audioBackend = request.backends.audio?.let(::backendOf),
    cacheDir = request.cacheDir,
)

private fun backendOf(accelerator: Accelerator): Backend = when (accelerator) {
    Accelerator.CPU -> Backend.CPU()
    Accelerator.GPU -> Backend.GPU()
}

/** With the history read at once: that is the way in which LiteRT-LM also reads the images and sound of former messages. */
private fun conversationConfig(settings: ChatSettings, history: List<ChatMessage>, tools: List<Tool>, drafts: Boolean) = ConversationConfig(
    systemInstruction = settings.systemPrompt.takeIf(String::isNotBlank)?.let { Contents.of(it) },
    initialMessages = history.flatMap(::messagesOf),
    tools = tools.map { tool(Described(it)) },
    samplerConfig = with(settings.sampler) { SamplerConfig(topK, topP, temperature, seed) },
    prefillPrefaceOnInit = history.isNotEmpty(),
    maxOutputToken = settings.maxAnswerTokens,
    enableSpeculativeDecoding = true.takeIf { drafts }, // null: as the engine was made, without
)

/** LiteRT-LM calls it when the model does, from a thread of its own. */
private class Described(private val tool: Tool) : OpenApiTool {
    override fun getToolDescriptionJsonString(): String = tool.description

    override fun execute(paramsJsonString: String): String = tool.answer(paramsJsonString)
}

/** An answer with calls was three messages: the calls, what they gave, and the text. */
private fun messagesOf(message: ChatMessage): List<Message> = when (message.role) {
    Role.USER -> listOf(Message.user(contentsOf(message)))
    Role.MODEL -> callsOf(message) + Message.model(contentsOf(message))
}

@Suppress("UNCHECKED_CAST") // a tool gets an object, and that is what is noted of it
private fun callsOf(message: ChatMessage): List<Message> {
    if (message.calls.isEmpty()) return emptyList()
    val calls = message.calls.map { ToolCall(it.name, Json.parse(it.arguments).plain as Map<String, Any?>) }
    val results = message.calls.map { Content.ToolResponse(it.name, it.result) }
    return listOf(Message.model(toolCalls = calls), Message.tool(Contents.of(results)))
}

/** Images and sound before the text that asks about them, as in LiteRT-LM's own examples. */
private fun contentsOf(message: ChatMessage): Contents =
    Contents.of(message.attachments.map(::contentOf) + Content.Text(message.text))

private fun contentOf(attachment: Attachment): Content = when (attachment.kind) {
    Attachment.Kind.IMAGE -> Content.ImageFile(attachment.path)
    Attachment.Kind.AUDIO -> Content.AudioFile(attachment.path)
}
