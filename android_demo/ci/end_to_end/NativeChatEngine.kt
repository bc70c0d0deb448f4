package org.gemmaedge.endtoend

import com.sun.jna.Pointer
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.emitAll
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.withContext
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
 * The real LiteRT-LM through its C interface: what engine/ does on a phone through the Kotlin one.
 *
 * [forced]: what the model is made to write to the next messages, by regular expressions: one as small as that of the
 * tests calls no tool by itself. LiteRT-LM's constraints stay with their conversation, so the next begins another one.
 */
class NativeChatEngine(private val library: LiteRtLmLibrary, private val forced: ArrayDeque<String> = ArrayDeque()) : ChatEngine {
    private var engine: Pointer? = null
    private var conversation: Pointer? = null

    // JNA holds callbacks weakly: one that nobody holds is collected, and native calls then end nowhere.
    private var callback: LiteRtLmLibrary.StreamCallback? = null
    private var settings = ChatSettings()
    private var tools = emptyList<Tool>()
    private var said = emptyList<Map<String, Any?>>() // before the conversation's first message

    init {
        library.litert_lm_set_min_log_level(LiteRtLmLibrary.LOG_ERROR)
    }

    override suspend fun load(request: LoadRequest) = withContext(Dispatchers.IO) {
        val settings = library.litert_lm_engine_settings_create(
            request.bundlePath,
            "cpu",
            request.backends.vision?.let { "cpu" },
            request.backends.audio?.let { "cpu" },
        ) ?: fail("engine settings")
        try {
            request.cacheDir?.let { library.litert_lm_engine_settings_set_cache_dir(settings, it) }
            engine = library.litert_lm_engine_create(settings) ?: fail("engine")
        } finally {
            library.litert_lm_engine_settings_delete(settings)
        }
    }

    override suspend fun startConversation(settings: ChatSettings, history: List<ChatMessage>, tools: List<Tool>) {
        this.settings = settings
        this.tools = tools
        withContext(Dispatchers.IO) { begin(history.flatMap(::messages)) }
    }

    private fun begin(said: List<Map<String, Any?>>) {
        endConversation()
        this.said = said
        val session = library.litert_lm_session_config_create()
        val config = library.litert_lm_conversation_config_create()
        try {
            val parameters = library.litert_lm_sampler_params_create(LiteRtLmLibrary.SAMPLER_TOP_P)
            library.litert_lm_sampler_params_set_top_k(parameters, settings.sampler.topK)
            library.litert_lm_sampler_params_set_top_p(parameters, settings.sampler.topP.toFloat())
            library.litert_lm_sampler_params_set_temperature(parameters, settings.sampler.temperature.toFloat())
            library.litert_lm_sampler_params_set_seed(parameters, settings.sampler.seed)
            library.litert_lm_session_config_set_sampler_params(session, parameters)
            library.litert_lm_sampler_params_delete(parameters)
            settings.maxAnswerTokens?.let { library.litert_lm_session_config_set_max_output_tokens(session, it) }
            library.litert_lm_conversation_config_set_session_config(config, session)
            if (settings.systemPrompt.isNotEmpty()) {
                library.litert_lm_conversation_config_set_system_message(config, settings.systemPrompt)
            }
            if (said.isNotEmpty()) library.litert_lm_conversation_config_set_messages(config, Json.write(said))
            if (tools.isNotEmpty()) {
                val described = tools.map { mapOf("type" to "function", "function" to Json.parse(it.description).plain) }
                library.litert_lm_conversation_config_set_tools(config, Json.write(described))
            }
            if (forced.isNotEmpty()) library.litert_lm_conversation_config_set_constraint_provider(config, intArrayOf(LL_GUIDANCE))
            conversation = library.litert_lm_conversation_create(engine!!, config) ?: fail("conversation")
        } finally {
            library.litert_lm_conversation_config_delete(config)
            library.litert_lm_session_config_delete(session)
        }
    }

    override fun send(message: ChatMessage): Flow<String> = flow {
        var next = messages(message).single()
        while (true) {
            val calls = mutableListOf<Json>()
            val wasForced = forced.isNotEmpty()
            emitAll(written(next, calls))
            if (calls.isEmpty()) break
            if (wasForced) begin(said + next + mapOf("role" to "assistant", "tool_calls" to calls.map { it.plain }))
            next = mapOf("role" to "tool", "content" to calls.map { resultOf(it["function"]) })
        }
    }

    /** What is written to one message; what is called goes into [calls]. */
    private fun written(message: Map<String, Any?>, calls: MutableList<Json>): Flow<String> = flow {
        val conversation = conversation!!
        val pieces = Channel<String>(Channel.UNLIMITED)
        val stopped = CompletableDeferred<Unit>()
        val receive = LiteRtLmLibrary.StreamCallback { _, chunk ->
            val error = library.litert_lm_stream_chunk_get_error(chunk)
            val text = if (error == null) library.litert_lm_stream_chunk_get_text(chunk).orEmpty() else ""
            if (text.isNotEmpty()) {
                val spoken = Json.parse(text)
                calls += spoken["tool_calls"].optional { items }.orEmpty()
                spoken["content"].optional { items }?.let { parts -> pieces.trySend(parts.joinToString("") { it["text"].text }) }
            }
            if (error != null || library.litert_lm_stream_chunk_is_final(chunk) != 0.toByte()) {
                // The context or maxAnswerTokens is used up: an end like any other.
                pieces.close(error?.takeUnless { FULL in it }?.let(::IllegalStateException))
                stopped.complete(Unit)
            }
        }
        callback = receive
        val options = forced.removeFirstOrNull()?.let { pattern ->
            library.litert_lm_conversation_optional_args_create().also {
                library.litert_lm_conversation_optional_args_set_constraint(it, REGEX, pattern)
            }
        }
        val text = Json.write(message)
        val status = library.litert_lm_conversation_send_message_stream(conversation, text, "{}", options, receive, null)
        options?.let(library::litert_lm_conversation_optional_args_delete)
        if (status != 0) fail("answer")
        try {
            for (piece in pieces) emit(piece)
        } finally {
            if (!stopped.isCompleted) library.litert_lm_conversation_cancel_process(conversation)
            withContext(NonCancellable) { stopped.await() }
        }
    }

    private fun resultOf(call: Json): Map<String, Any?> {
        val name = call["name"].text
        val result = tools.find { it.name == name }?.answer("${call["arguments"]}") ?: "error: there is no $name"
        return mapOf("type" to "tool_response", "name" to name, "response" to result)
    }

    /** As litert_lm's own Benchmark (benchmark.py of its wheel). */
    override suspend fun measure(request: LoadRequest, prefillTokens: Int, decodeTokens: Int): EngineTimes = withContext(Dispatchers.IO) {
        val settings = library.litert_lm_engine_settings_create(request.bundlePath, "cpu", null, null) ?: fail("engine settings")
        library.litert_lm_engine_settings_enable_benchmark(settings)
        library.litert_lm_engine_settings_set_num_prefill_tokens(settings, prefillTokens)
        library.litert_lm_engine_settings_set_num_decode_tokens(settings, decodeTokens)
        request.cacheDir?.let { library.litert_lm_engine_settings_set_cache_dir(settings, it) }
        val measured = library.litert_lm_engine_create(settings)
        library.litert_lm_engine_settings_delete(settings)
        val session = library.litert_lm_engine_create_session(measured ?: fail("engine"), null) ?: fail("session")
        val prompt = "How are you".toByteArray()
        val input = library.litert_lm_input_data_create(TEXT, prompt, prompt.size.toLong())
        library.litert_lm_session_generate_content(session, arrayOf(input), 1)?.let(library::litert_lm_responses_delete)
        library.litert_lm_input_data_delete(input)
        val info = library.litert_lm_session_get_benchmark_info(session) ?: fail("figures")
        val times = EngineTimes(
            library.litert_lm_benchmark_info_get_total_init_time_in_second(info),
            library.litert_lm_benchmark_info_get_time_to_first_token(info),
            library.litert_lm_benchmark_info_get_prefill_tokens_per_sec_at(info, 0),
            library.litert_lm_benchmark_info_get_decode_tokens_per_sec_at(info, 0),
        )
        library.litert_lm_benchmark_info_delete(info)
        library.litert_lm_session_delete(session)
        library.litert_lm_engine_delete(measured)
        times
    }

    override suspend fun release() = withContext(NonCancellable + Dispatchers.IO) {
        endConversation()
        engine?.let(library::litert_lm_engine_delete)
        engine = null
    }

    private fun endConversation() {
        conversation?.let(library::litert_lm_conversation_delete)
        conversation = null
    }

    /** An answer with calls was three messages: the calls, what they gave, and the text. */
    private fun messages(message: ChatMessage): List<Map<String, Any?>> {
        val parts = message.attachments.map { mapOf("type" to it.kind.name.lowercase(), "path" to it.path) }
        val said = mapOf(
            "role" to if (message.role == Role.USER) "user" else "assistant",
            "content" to parts + mapOf("type" to "text", "text" to message.text),
        )
        if (message.calls.isEmpty()) return listOf(said)
        val calls = message.calls.map {
            mapOf("type" to "function", "function" to mapOf("name" to it.name, "arguments" to Json.parse(it.arguments).plain))
        }
        val results = message.calls.map { mapOf("type" to "tool_response", "name" to it.name, "response" to it.result) }
        return listOf(mapOf("role" to "assistant", "tool_calls" to calls), mapOf("role" to "tool", "content" to results), said)
    }

    private fun fail(what: String): Nothing =
        throw IllegalStateException("LiteRT-LM gave no $what: ${library.litert_lm_get_last_error_message()}")

    private companion object {
        const val FULL = "Max number of tokens reached"
        const val LL_GUIDANCE = 1
        const val REGEX = 1
        const val TEXT = 0
    }
}
