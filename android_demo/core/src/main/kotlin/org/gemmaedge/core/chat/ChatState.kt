package org.gemmaedge.core.chat

enum class Role { USER, MODEL }

/** A file that goes with a message, in the app's own storage. */
data class Attachment(val kind: Kind, val path: String) {
    enum class Kind { IMAGE, AUDIO }
}

/** How far an answer came. Messages of the user are always COMPLETE. */
enum class Completion { COMPLETE, WRITING, CANCELLED, FAILED }

/**
 * [tokens]: decoding steps; one step writes one token, but for the bytes of a character that take several.
 * [firstTokenMs]: from sending to the first of them, the time that reading the prompt takes.
 */
data class GenerationStats(val tokens: Int, val firstTokenMs: Long, val totalMs: Long) {
    /** Decoding only: the first token belongs to the prompt. Null for fewer than two tokens. */
    val tokensPerSecond: Double?
        get() = if (tokens < 2 || totalMs <= firstTokenMs) null else (tokens - 1) * 1000.0 / (totalMs - firstTokenMs)
}

/** [calls]: what the model had the phone do for this answer. */
data class ChatMessage(
    val role: Role,
    val text: String,
    val attachments: List<Attachment> = emptyList(),
    val completion: Completion = Completion.COMPLETE,
    val stats: GenerationStats? = null,
    val calls: List<ToolCall> = emptyList(),
)

/** How a conversation is sampled. The defaults are those of Gemma's generation_config.json. */
data class SamplerSettings(val topK: Int = 64, val topP: Double = 0.95, val temperature: Double = 1.0, val seed: Int = 0) {
    init {
        require(topK >= 1) { "topK is $topK, expected at least 1" }
        require(topP in 0.0..1.0) { "topP is $topP, expected 0 to 1" }
        require(temperature >= 0) { "temperature is $temperature, expected 0 or more" }
    }
}

/** What applies from the next conversation on. [maxAnswerTokens] null: until the context is full; [usesTools]: it may call them. */
data class ChatSettings(
    val systemPrompt: String = "",
    val sampler: SamplerSettings = SamplerSettings(),
    val maxAnswerTokens: Int? = null,
    val usesTools: Boolean = false,
) {
    init {
        require(maxAnswerTokens == null || maxAnswerTokens >= 1) { "maxAnswerTokens is $maxAnswerTokens, expected at least 1" }
    }
}

/**
 * [MEASURING]: a benchmark has the engine for itself. [SERVING]: it answers somebody else (serve/); the chat waits.
 * [STUCK]: the engine does not return from a call; only a new process has a free one.
 */
enum class Phase { IDLE, LOADING, READY, GENERATING, CANCELLED, FAILED, MEASURING, SERVING, STUCK }

/** Something to tell the user once; [detail] is for the curious, in English. */
data class Notice(val kind: Kind, val detail: String = "") {
    enum class Kind {
        /** The GPU refused the model; it runs on the CPU. */
        FELL_BACK_TO_CPU,

        /** Memory ran low and the model was released; the chat is kept. */
        RELEASED_FOR_MEMORY,

        /** The app was ended in the middle of an answer. */
        INTERRUPTED,

        /** A saved chat could not be read; its file was kept under another name, [detail]. */
        CHAT_KEPT_ASIDE,

        /** The chat cannot be saved: what is said now is lost with the process. */
        NOT_SAVED,

        /** A fault of the app itself, [detail]. */
        UNEXPECTED,

        LOAD_FAILED,
        GENERATION_FAILED,
        RELEASE_FAILED,

        /** The engine does not return: its memory is free only after a restart of the app. */
        ENGINE_STUCK,

        /** It did in the end: a model can be loaded again. */
        ENGINE_CAME_BACK,
    }
}

/**
 * Everything a screen shows of one chat. Immutable: [after] gives the next one.
 *
 * [bundlePath] and [backends] are of the model that is loaded or being loaded; null in IDLE.
 * [id] names the chat in [ChatStore], "" while none is open; [title] null: the beginning of the first message.
 * READY, CANCELLED and FAILED differ in how the last answer, or the load, ended. [canSend] tells whether a model is there.
 */
data class ChatState(
    val phase: Phase = Phase.IDLE,
    val loaded: LoadRequest? = null,
    val settings: ChatSettings = ChatSettings(),
    val messages: List<ChatMessage> = emptyList(),
    val notice: Notice? = null,
    val id: String = "",
    val title: String? = null,
) {
    val canLoad: Boolean get() = phase !in BUSY
    val canSend: Boolean get() = loaded != null && canLoad
    val canCancel: Boolean get() = phase == Phase.GENERATING

    /**
     * What an engine is to know of the past: each user's message that was answered, with its answer, as far as it came.
     *
     * Without attachments that the model does not take: for one of them, LiteRT-LM refuses every later message.
     */
    val history: List<ChatMessage>
        get() = messages.chunked(2)
            .filter { it.size == 2 && it[1].text.isNotEmpty() && it[1].completion != Completion.FAILED }
            .flatten()
            .map { message -> message.copy(attachments = message.attachments.filter { takes(it.kind) }) }

    /** [title], or what stands for it. Empty for a chat without a word. */
    val shownTitle: String
        get() = title ?: messages.map { it.text.trim() }.find { it.isNotEmpty() }?.lines()?.first()?.take(LONGEST_TITLE_CHARS).orEmpty()

    /** Whether the model that is loaded takes it. */
    fun takes(kind: Attachment.Kind): Boolean = when (kind) {
        Attachment.Kind.IMAGE -> loaded?.backends?.vision != null
        Attachment.Kind.AUDIO -> loaded?.backends?.audio != null
    }

    private companion object {
        const val LONGEST_TITLE_CHARS = 60
        val BUSY = setOf(Phase.LOADING, Phase.GENERATING, Phase.MEASURING, Phase.SERVING, Phase.STUCK)
    }
}
