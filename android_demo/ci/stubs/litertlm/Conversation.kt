package com.google.ai.edge.litertlm

import kotlinx.coroutines.flow.Flow

interface MessageCallback {
    fun onMessage(message: Message)

    fun onDone()

    fun onError(throwable: Throwable)
}

class Conversation internal constructor() : AutoCloseable {
    val isAlive: Boolean get() = throw SignatureOnly()

    fun sendMessage(
        message: Message,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Message = throw SignatureOnly()

    fun sendMessage(
        contents: Contents,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Message = throw SignatureOnly()

    fun sendMessage(
        text: String,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Message = throw SignatureOnly(text)

    fun sendMessageAsync(
        message: Message,
        callback: MessageCallback,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Unit = throw SignatureOnly()

    fun sendMessageAsync(
        contents: Contents,
        callback: MessageCallback,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Unit = throw SignatureOnly()

    fun sendMessageAsync(
        message: Message,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Flow<Message> = throw SignatureOnly()

    fun sendMessageAsync(
        contents: Contents,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Flow<Message> = throw SignatureOnly()

    fun sendMessageAsync(
        text: String,
        callback: MessageCallback,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Unit = throw SignatureOnly(text)

    fun sendMessageAsync(
        text: String,
        extraContext: Map<String, Any> = emptyMap(),
        repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
        noRepeatNgramConfig: NoRepeatNgramConfig? = null,
        suppressTokensConfig: SuppressTokensConfig? = null,
        maxOutputToken: Int? = null,
        thinkingConfig: ThinkingConfig? = null,
        responseFormat: ResponseFormat? = null,
        disableSpeculativeDecoding: Boolean = false,
    ): Flow<Message> = throw SignatureOnly(text)

    fun cancelProcess(): Unit = throw SignatureOnly()

    @ExperimentalApi
    fun getBenchmarkInfo(): BenchmarkInfo = throw SignatureOnly()

    fun getTokenCount(): Int = throw SignatureOnly()

    @ExperimentalApi
    fun renderMessageIntoString(message: Message, extraContext: Map<String, Any> = emptyMap()): String =
        throw SignatureOnly("$message $extraContext")

    @ExperimentalApi
    fun renderPrefaceIntoString(): String = throw SignatureOnly()

    override fun close(): Unit = throw SignatureOnly()
}
