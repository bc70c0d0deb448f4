package org.gemmaedge.endtoend

import com.sun.jna.Callback
import com.sun.jna.Library
import com.sun.jna.Native
import com.sun.jna.Pointer

/**
 * The part of LiteRT-LM's C interface (c/engine.h) that a chat needs, as liblitert-lm.so of the PyPI wheel exports it.
 * A C bool that is returned occupies one byte; JNA's Boolean would read four.
 */
@Suppress("FunctionName")
interface LiteRtLmLibrary : Library {
    fun litert_lm_set_min_log_level(level: Int)

    fun litert_lm_get_last_error_message(): String?

    fun litert_lm_engine_settings_create(model: String, backend: String, vision: String?, audio: String?): Pointer?

    fun litert_lm_engine_settings_set_cache_dir(settings: Pointer, folder: String)

    fun litert_lm_engine_settings_delete(settings: Pointer)

    fun litert_lm_engine_create(settings: Pointer): Pointer?

    fun litert_lm_engine_delete(engine: Pointer)

    fun litert_lm_sampler_params_create(type: Int): Pointer

    fun litert_lm_sampler_params_set_top_k(parameters: Pointer, topK: Int)

    fun litert_lm_sampler_params_set_top_p(parameters: Pointer, topP: Float)

    fun litert_lm_sampler_params_set_temperature(parameters: Pointer, temperature: Float)

    fun litert_lm_sampler_params_set_seed(parameters: Pointer, seed: Int)

    fun litert_lm_sampler_params_delete(parameters: Pointer)

    fun litert_lm_session_config_create(): Pointer

    fun litert_lm_session_config_set_sampler_params(config: Pointer, parameters: Pointer)

    fun litert_lm_session_config_set_max_output_tokens(config: Pointer, tokens: Int)

    fun litert_lm_session_config_delete(config: Pointer)

    fun litert_lm_conversation_config_create(): Pointer

    fun litert_lm_conversation_config_set_session_config(config: Pointer, session: Pointer)

    fun litert_lm_conversation_config_set_system_message(config: Pointer, message: String)

    fun litert_lm_conversation_config_set_messages(config: Pointer, messages: String)

    fun litert_lm_conversation_config_set_tools(config: Pointer, tools: String)

    fun litert_lm_conversation_config_set_constraint_provider(config: Pointer, provider: IntArray)

    fun litert_lm_conversation_config_delete(config: Pointer)

    fun litert_lm_conversation_create(engine: Pointer, config: Pointer): Pointer?

    fun litert_lm_conversation_delete(conversation: Pointer)

    fun litert_lm_conversation_send_message_stream(
        conversation: Pointer,
        message: String,
        extraContext: String,
        options: Pointer?,
        callback: StreamCallback,
        data: Pointer?,
    ): Int

    fun litert_lm_conversation_optional_args_create(): Pointer

    fun litert_lm_conversation_optional_args_set_constraint(options: Pointer, type: Int, pattern: String)

    fun litert_lm_conversation_optional_args_delete(options: Pointer)

    fun litert_lm_conversation_cancel_process(conversation: Pointer)

    fun litert_lm_stream_chunk_get_text(chunk: Pointer): String?

    fun litert_lm_stream_chunk_get_error(chunk: Pointer): String?

    fun litert_lm_stream_chunk_is_final(chunk: Pointer): Byte

    fun litert_lm_engine_settings_enable_benchmark(settings: Pointer)

    fun litert_lm_engine_settings_set_num_prefill_tokens(settings: Pointer, tokens: Int)

    fun litert_lm_engine_settings_set_num_decode_tokens(settings: Pointer, tokens: Int)

    fun litert_lm_engine_create_session(engine: Pointer, config: Pointer?): Pointer?

    fun litert_lm_session_delete(session: Pointer)

    fun litert_lm_input_data_create(type: Int, data: ByteArray, size: Long): Pointer

    fun litert_lm_input_data_delete(input: Pointer)

    fun litert_lm_session_generate_content(session: Pointer, inputs: Array<Pointer>, count: Long): Pointer?

    fun litert_lm_responses_delete(responses: Pointer)

    fun litert_lm_session_get_benchmark_info(session: Pointer): Pointer?

    fun litert_lm_benchmark_info_get_total_init_time_in_second(info: Pointer): Double

    fun litert_lm_benchmark_info_get_time_to_first_token(info: Pointer): Double

    fun litert_lm_benchmark_info_get_prefill_tokens_per_sec_at(info: Pointer, turn: Int): Double

    fun litert_lm_benchmark_info_get_decode_tokens_per_sec_at(info: Pointer, turn: Int): Double

    fun litert_lm_benchmark_info_delete(info: Pointer)

    fun interface StreamCallback : Callback {
        fun invoke(data: Pointer?, chunk: Pointer)
    }

    companion object {
        const val SAMPLER_TOP_P = 2
        const val LOG_ERROR = 4

        fun load(path: String): LiteRtLmLibrary =
            Native.load(path, LiteRtLmLibrary::class.java, mapOf(Library.OPTION_STRING_ENCODING to "UTF-8"))
    }
}
