package org.gemmaedge.core.screen

import org.gemmaedge.core.chat.Accelerator
import org.gemmaedge.core.chat.Attachment
import org.gemmaedge.core.chat.ChatMessage
import org.gemmaedge.core.chat.ChatState
import org.gemmaedge.core.chat.Completion
import org.gemmaedge.core.chat.DraftState
import org.gemmaedge.core.chat.GenerationStats
import org.gemmaedge.core.chat.Notice
import org.gemmaedge.core.chat.Phase
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.memory.ProcessMemory
import org.gemmaedge.core.store.StoredBundle

/** What the screen knows beside the chat. [lastBundle]: the path of the model that was loaded last. */
data class ChatFacts(
    val memory: ProcessMemory? = null,
    val lastBundle: String? = null,
    val hasMicrophone: Boolean = false,
    val longestRecordingSeconds: Int = 30,
)

/** A message. [detail] is what stands below it: how it ended, how fast it was, what is attached. */
data class ChatRow(val isUser: Boolean, val text: String, val detail: List<Phrase>, val canEdit: Boolean, val canRegenerate: Boolean)

/** The chat's screen, ready to be shown; nothing is left to decide. */
data class ChatScreen(
    val title: String,
    val rows: List<ChatRow>,
    val empty: Phrase,
    val notice: Phrase?,
    val noticeRestarts: Boolean,
    val status: Phrase?,
    val isLoading: Boolean,
    val showsLoadBar: Boolean,
    val loadAgain: Phrase?,
    val canSend: Boolean,
    val canStop: Boolean,
    val canBegin: Boolean,
    val canRelease: Boolean,
    val takesImages: Boolean,
    val takesSound: Boolean,
    val canRecord: Boolean,
    val isRecording: Boolean,
    val draft: Phrase?,
    val staysAwake: Boolean,
) {
    companion object {
        fun of(chat: ChatState, draft: DraftState, facts: ChatFacts): ChatScreen {
            val isWriting = chat.phase == Phase.GENERATING
            val isStuck = chat.phase == Phase.STUCK
            val hears = chat.loaded?.backends?.audio != null
            val lastAnswer = chat.messages.indexOfLast { it.role == Role.MODEL }
            return ChatScreen(
                title = chat.shownTitle,
                rows = chat.messages.mapIndexed { i, it -> rowOf(it, canChange(chat, i), isLastAnswer = i == lastAnswer) },
                empty = if (chat.loaded == null) phrase("chat_empty") else phrase("chat_ready"),
                notice = chat.notice?.let(::phraseOf)?.let { if (isStuck) phrase("notice_restart", it) else phrase("notice_dismiss", it) },
                noticeRestarts = isStuck,
                status = statusOf(chat, facts.memory),
                isLoading = chat.phase == Phase.LOADING,
                showsLoadBar = chat.loaded == null && chat.canLoad,
                loadAgain = facts.lastBundle?.let { phrase("load_again", nameOf(it)) },
                canSend = chat.canSend && !draft.isRecording && draft.attachments.all { chat.takes(it.kind) },
                canStop = chat.canCancel,
                canBegin = chat.messages.isNotEmpty(),
                canRelease = chat.loaded != null,
                takesImages = chat.loaded?.backends?.vision != null,
                takesSound = hears,
                canRecord = (hears && facts.hasMicrophone) || draft.isRecording,
                isRecording = draft.isRecording,
                draft = draftOf(draft, chat, facts),
                staysAwake = isWriting || chat.phase == Phase.LOADING || chat.phase == Phase.MEASURING,
            )
        }

        /** Whether the question at [place], or before the answer there, can be asked of the model that is loaded now. */
        private fun canChange(chat: ChatState, place: Int): Boolean {
            val question = chat.messages.subList(0, place + 1).lastOrNull { it.role == Role.USER }
            return chat.canSend && question?.attachments.orEmpty().all { chat.takes(it.kind) }
        }

        private fun rowOf(message: ChatMessage, canChange: Boolean, isLastAnswer: Boolean): ChatRow {
            val isUser = message.role == Role.USER
            val calls = message.calls.map { phrase("called", it.name, it.arguments, it.result) }
            val detail = if (isUser) message.attachments.map(::phraseOf) else calls + detailOf(message)
            return ChatRow(isUser, message.text, detail, canEdit = isUser && canChange, canRegenerate = isLastAnswer && canChange)
        }

        private fun detailOf(answer: ChatMessage): List<Phrase> {
            val ending = when (answer.completion) {
                Completion.COMPLETE -> null
                Completion.WRITING -> phrase("completion_writing")
                Completion.CANCELLED -> phrase("completion_cancelled")
                Completion.FAILED -> phrase("completion_failed")
            }
            return listOfNotNull(ending, answer.stats?.takeIf { it.tokens > 0 }?.let(::speedOf))
        }

        private fun speedOf(stats: GenerationStats): Phrase {
            val firstSeconds = stats.firstTokenMs / MS_PER_S
            return stats.tokensPerSecond?.let { phrase("stats", it, firstSeconds, stats.tokens) } ?: phrase("stats_first", firstSeconds)
        }

        private fun statusOf(chat: ChatState, memory: ProcessMemory?): Phrase? {
            if (chat.phase == Phase.MEASURING) return phrase("status_measuring")
            val loaded = chat.loaded ?: return null
            val name = nameOf(loaded.bundlePath)
            val place = phraseOf(loaded.backends.text)
            return when (chat.phase) {
                Phase.LOADING -> phrase("status_loading", name)
                Phase.GENERATING -> phrase("status_writing")
                Phase.SERVING -> phrase("status_serving")
                else -> memory?.let { phrase("status_loaded_memory", name, place, formatBytes(it.anonBytes), formatBytes(it.fileBytes)) }
                    ?: phrase("status_loaded", name, place)
            }
        }

        private fun draftOf(draft: DraftState, chat: ChatState, facts: ChatFacts): Phrase? {
            val trouble = draft.trouble
            val notTaken = draft.attachments.filterNot { chat.takes(it.kind) }.takeIf { chat.loaded != null }.orEmpty()
            return when {
                draft.isRecording -> phrase("recording", facts.longestRecordingSeconds)
                trouble != null -> phrase("record_failed", trouble)
                draft.attachments.isEmpty() -> null
                notTaken.isNotEmpty() -> phrase("attachments_not_taken", notTaken.map(::phraseOf).distinct())
                else -> phrase("attachments_attached", draft.attachments.map(::phraseOf))
            }
        }

        private fun phraseOf(accelerator: Accelerator) = when (accelerator) {
            Accelerator.CPU -> phrase("accelerator_cpu")
            Accelerator.GPU -> phrase("accelerator_gpu")
        }

        private fun phraseOf(attachment: Attachment) = when (attachment.kind) {
            Attachment.Kind.IMAGE -> phrase("attachment_image")
            Attachment.Kind.AUDIO -> phrase("attachment_audio")
        }

        private fun phraseOf(notice: Notice): Phrase = when (notice.kind) {
            Notice.Kind.FELL_BACK_TO_CPU -> phrase("notice_fell_back", notice.detail)
            Notice.Kind.RELEASED_FOR_MEMORY -> phrase("notice_released")
            Notice.Kind.INTERRUPTED -> phrase("notice_interrupted")
            Notice.Kind.CHAT_KEPT_ASIDE -> phrase("notice_kept_aside", notice.detail)
            Notice.Kind.NOT_SAVED -> phrase("notice_not_saved", notice.detail)
            Notice.Kind.UNEXPECTED -> phrase("notice_unexpected", notice.detail)
            Notice.Kind.LOAD_FAILED -> phrase("notice_load_failed", notice.detail)
            Notice.Kind.GENERATION_FAILED -> phrase("notice_generation_failed", notice.detail)
            Notice.Kind.RELEASE_FAILED -> phrase("notice_release_failed", notice.detail)
            Notice.Kind.ENGINE_STUCK -> phrase("notice_stuck", notice.detail)
            Notice.Kind.ENGINE_CAME_BACK -> phrase("notice_came_back")
        }

        private fun nameOf(path: String) = path.substringAfterLast('/').removeSuffix(StoredBundle.SUFFIX)

        private const val MS_PER_S = 1000.0
    }
}
