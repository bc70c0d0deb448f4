package com.google.ai.edge.litertlm

class Engine(val engineConfig: EngineConfig) : AutoCloseable {
    fun isInitialized(): Boolean = throw SignatureOnly()

    fun initialize(): Unit = throw SignatureOnly()

    fun createConversation(conversationConfig: ConversationConfig = ConversationConfig()): Conversation = throw SignatureOnly()

    override fun close(): Unit = throw SignatureOnly()

    companion object {
        fun setNativeMinLogSeverity(level: LogSeverity): Unit = throw SignatureOnly(level.name)
    }
}

enum class LogSeverity(val severity: Int) { VERBOSE(0), DEBUG(1), INFO(2), WARNING(3), ERROR(4), FATAL(5), INFINITY(1000) }

class LiteRtLmJniException(message: String) : RuntimeException(message)

@RequiresOptIn(level = RequiresOptIn.Level.ERROR)
@Retention(AnnotationRetention.BINARY)
@Target(AnnotationTarget.CLASS, AnnotationTarget.FUNCTION, AnnotationTarget.PROPERTY)
annotation class ExperimentalApi

@ExperimentalApi
object ExperimentalFlags {
    var enableBenchmark: Boolean = false
    var visualTokenBudget: Int? = null
}

@ExperimentalApi
fun benchmark(
    modelPath: String,
    backend: Backend,
    prefillTokens: Int = 256,
    decodeTokens: Int = 256,
    cacheDir: String? = null,
    prompt: String = "How are you",
    repetitionPenaltyConfig: RepetitionPenaltyConfig? = null,
): BenchmarkInfo = throw SignatureOnly("$modelPath $backend $prefillTokens $decodeTokens $cacheDir $prompt $repetitionPenaltyConfig")

data class BenchmarkInfo(
    val initTimeInSecond: Double,
    val timeToFirstTokenInSecond: Double,
    val lastPrefillTokenCount: Int,
    val lastDecodeTokenCount: Int,
    val lastPrefillTokensPerSecond: Double,
    val lastDecodeTokensPerSecond: Double,
)

/** What a call into these signatures would throw, were they ever packaged. */
internal class SignatureOnly(what: String = "") : Error("a signature without behaviour $what")
