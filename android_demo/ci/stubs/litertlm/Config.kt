package com.google.ai.edge.litertlm

sealed class Backend(val name: String) {
    data class CPU(val threadCount: Int? = null, val numOfThreads: Int? = null) : Backend("CPU")

    class GPU : Backend("GPU")

    data class NPU(val nativeLibraryDir: String = "") : Backend("NPU")
}

enum class ActivationDataType(val value: Int) { FLOAT32(0), FLOAT16(1), INT16(2), INT8(3) }

data class EngineConfig(
    val modelPath: String,
    val backend: Backend = Backend.CPU(),
    val visionBackend: Backend? = null,
    val audioBackend: Backend? = null,
    val maxNumTokens: Int? = null,
    val maxNumImages: Int? = null,
    val cacheDir: String? = null,
    val activationDataType: ActivationDataType? = null,
) {
    init {
        require(maxNumTokens == null || maxNumTokens > 0)
        require(maxNumImages == null || maxNumImages > 0)
    }
}

data class SamplerConfig(val topK: Int, val topP: Double, val temperature: Double, val seed: Int = 0) {
    init {
        require(topK > 0)
        require(topP >= 0 && topP <= 1)
        require(temperature >= 0)
    }
}

data class LoraConfig(val loraPath: String? = null, val audioLoraPath: String? = null)

data class Channel(val channelName: String, val start: String, val end: String)

data class ThinkingConfig(val enableThinking: Boolean = true, val thinkingTokenBudget: Int = -1)

data class ConversationConfig(
    val systemInstruction: Contents? = null,
    val initialMessages: List<Message> = listOf(),
    val tools: List<ToolProvider> = listOf(),
    val samplerConfig: SamplerConfig? = null,
    val automaticToolCalling: Boolean = true,
    val channels: List<Channel>? = null,
    val extraContext: Map<String, Any> = emptyMap(),
    val loraConfig: LoraConfig? = null,
    val prefillPrefaceOnInit: Boolean = false,
    val maxOutputToken: Int? = null,
    val thinkingConfig: ThinkingConfig? = null,
    val enableResponseFormat: Boolean = false,
    val enableSpeculativeDecoding: Boolean? = null,
    val chatTemplate: String? = null,
) {
    init {
        require(maxOutputToken == null || maxOutputToken > 0)
    }
}

data class RepetitionPenaltyConfig(
    val repetitionPenalty: Float? = null,
    val presencePenalty: Float? = null,
    val frequencyPenalty: Float? = null,
    val windowSize: Int? = null,
) {
    init {
        require(repetitionPenalty == null || repetitionPenalty >= 1.0f)
        require(windowSize == null || windowSize >= 0)
    }
}

data class NoRepeatNgramConfig(val noRepeatNgramSize: Int? = null, val windowSize: Int? = null) {
    init {
        require(noRepeatNgramSize == null || noRepeatNgramSize >= 0)
        require(windowSize == null || windowSize >= 0)
    }
}

data class SuppressTokensConfig(val suppressTokens: Collection<Int>)
