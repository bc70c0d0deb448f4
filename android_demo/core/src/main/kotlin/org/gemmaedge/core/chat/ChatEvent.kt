package org.gemmaedge.core.chat

/** What happens to a chat. */
sealed interface ChatEvent {
    data class LoadStarted(val request: LoadRequest) : ChatEvent

    /** While loading, or at the first answer: a GPU without OpenCL is only found out then. */
    data class FellBack(val backends: Backends, val reason: String) : ChatEvent

    data object Loaded : ChatEvent

    data class LoadFailed(val reason: String) : ChatEvent

    data class Sent(val text: String, val attachments: List<Attachment> = emptyList()) : ChatEvent

    data class Wrote(val text: String) : ChatEvent

    /** The model had the phone do something, and goes on with its result. */
    data class Called(val call: ToolCall) : ChatEvent

    data class Answered(val stats: GenerationStats) : ChatEvent

    data class Cancelled(val stats: GenerationStats) : ChatEvent

    data class GenerationFailed(val reason: String) : ChatEvent

    data class SettingsChanged(val settings: ChatSettings) : ChatEvent

    /** A new chat, called [id], with the settings of the one before. */
    data class Cleared(val id: String = "") : ChatEvent

    /** Another chat takes the place of the one on the screen; the model stays. */
    data class Opened(val chat: ChatState) : ChatEvent

    /** The chat ends before its message [count]: another takes its place. */
    data class Rewound(val count: Int) : ChatEvent

    data class Renamed(val title: String) : ChatEvent

    /** Something to tell that is not about the engine. */
    data class Told(val notice: Notice) : ChatEvent

    /** The model goes from memory; [forMemory] where the system asked for it. An answer in the making ends there. */
    data class Released(val forMemory: Boolean) : ChatEvent

    /** Unloading failed: some of the memory may not be free. */
    data class ReleaseFailed(val reason: String) : ChatEvent

    /** The engine does not return from a call, whatever it was told. */
    data class Stuck(val reason: String) : ChatEvent

    /** It has returned after all, and is free again, without a model. */
    data object CameBack : ChatEvent

    data object NoticeRead : ChatEvent

    /** A benchmark begins: the model goes from memory, the engine measures. */
    data object MeasureStarted : ChatEvent

    data object MeasureEnded : ChatEvent

    /** The engine answers somebody else. */
    data object ServeStarted : ChatEvent

    data object ServeEnded : ChatEvent
}

/** The whole state machine. Throws IllegalStateException for an event that cannot happen in this phase. */
fun ChatState.after(event: ChatEvent): ChatState =
    when (event) {
        is ChatEvent.LoadStarted -> on(canLoad, event).copy(phase = Phase.LOADING, loaded = event.request, notice = null)
        is ChatEvent.FellBack ->
            on(phase == Phase.LOADING || phase == Phase.GENERATING, event).copy(
                loaded = loaded!!.copy(backends = event.backends),
                notice = Notice(Notice.Kind.FELL_BACK_TO_CPU, event.reason),
            )
        is ChatEvent.Loaded -> on(phase == Phase.LOADING, event).copy(phase = Phase.READY)
        is ChatEvent.LoadFailed ->
            on(phase == Phase.LOADING, event).copy(
                phase = Phase.FAILED,
                loaded = null,
                notice = Notice(Notice.Kind.LOAD_FAILED, event.reason),
            )
        is ChatEvent.Sent ->
            on(canSend, event).copy(
                phase = Phase.GENERATING,
                messages = messages +
                    ChatMessage(Role.USER, event.text, event.attachments) +
                    ChatMessage(Role.MODEL, "", completion = Completion.WRITING),
                notice = null,
            )
        is ChatEvent.Wrote -> generating(event).withAnswer { copy(text = text + event.text) }
        is ChatEvent.Called -> generating(event).withAnswer { copy(calls = calls + event.call) }
        is ChatEvent.Answered ->
            generating(event).copy(phase = Phase.READY).withAnswer { copy(completion = Completion.COMPLETE, stats = event.stats) }
        is ChatEvent.Cancelled ->
            generating(event).copy(phase = Phase.CANCELLED).withAnswer { copy(completion = Completion.CANCELLED, stats = event.stats) }
        is ChatEvent.GenerationFailed ->
            generating(event)
                .copy(phase = Phase.FAILED, notice = Notice(Notice.Kind.GENERATION_FAILED, event.reason))
                .withAnswer { copy(completion = Completion.FAILED) }
        is ChatEvent.SettingsChanged -> copy(settings = event.settings)
        is ChatEvent.Cleared -> on(phase != Phase.GENERATING, event).rested().copy(messages = emptyList(), id = event.id, title = null)
        is ChatEvent.Opened -> with(event.chat) {
            this@after.on(this@after.phase != Phase.GENERATING, event).rested()
                .copy(messages = messages, id = id, title = title, settings = settings, notice = notice ?: this@after.notice)
        }
        is ChatEvent.Rewound -> on(canSend && event.count in messages.indices, event).rested().copy(messages = messages.take(event.count))
        is ChatEvent.Renamed -> copy(title = event.title)
        is ChatEvent.Told -> copy(notice = event.notice)
        is ChatEvent.Released -> {
            val told = if (event.forMemory) Notice(Notice.Kind.RELEASED_FOR_MEMORY) else null
            if (phase == Phase.STUCK) this else answerEnded().copy(phase = Phase.IDLE, loaded = null, notice = told)
        }
        is ChatEvent.ReleaseFailed -> copy(notice = Notice(Notice.Kind.RELEASE_FAILED, event.reason))
        is ChatEvent.Stuck ->
            answerEnded().copy(phase = Phase.STUCK, loaded = null, notice = Notice(Notice.Kind.ENGINE_STUCK, event.reason))
        is ChatEvent.CameBack ->
            on(phase == Phase.STUCK, event).copy(phase = Phase.IDLE, notice = Notice(Notice.Kind.ENGINE_CAME_BACK))
        is ChatEvent.NoticeRead -> copy(notice = null)
        is ChatEvent.MeasureStarted -> on(canLoad, event).copy(phase = Phase.MEASURING, loaded = null, notice = null)
        is ChatEvent.MeasureEnded -> on(phase == Phase.MEASURING, event).copy(phase = Phase.IDLE)
        is ChatEvent.ServeStarted -> on(canSend, event).copy(phase = Phase.SERVING)
        is ChatEvent.ServeEnded -> on(phase == Phase.SERVING, event).copy(phase = Phase.READY)
    }

private fun ChatState.on(possible: Boolean, event: ChatEvent): ChatState {
    check(possible) { "${event::class.simpleName} cannot happen in $phase" }
    return this
}

private fun ChatState.generating(event: ChatEvent) = on(phase == Phase.GENERATING, event)

/** Without how the last answer ended. */
private fun ChatState.rested() = if (canSend) copy(phase = Phase.READY) else this

private fun ChatState.answerEnded() =
    if (phase == Phase.GENERATING) withAnswer { copy(completion = Completion.CANCELLED) } else this

private fun ChatState.withAnswer(change: ChatMessage.() -> ChatMessage) = copy(messages = messages.dropLast(1) + messages.last().change())
