package org.gemmaedge.core.chat

import java.io.IOException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext

/**
 * The chats of [store] and the one that [controller] has on the screen: opening one saves the other first.
 *
 * All functions belong to the controller's thread; files are touched on [files].
 */
class Chats(
    private val store: ChatStore,
    private val controller: ChatController,
    private val files: CoroutineDispatcher = Dispatchers.IO,
    private val pauseMs: Long = 500,
) {
    private val restored = CompletableDeferred<Unit>()
    private val writing = Mutex()
    private var isFailing = false

    /** Returns when the last chat is on the screen: nothing is sent before, or it would go into a chat without a name. */
    suspend fun untilRestored() = restored.await()

    /** Open the last chat, then write every change, the newest at most a moment late. Never returns. */
    suspend fun restoreAndKeep(): Nothing {
        val last = try {
            withContext(files) { store.last() }
        } catch (error: IOException) {
            ChatState(id = store.newName(), notice = Notice(Notice.Kind.NOT_SAVED, error.message.orEmpty()))
        }
        controller.open(last)
        restored.complete(Unit)
        controller.state.collect { state ->
            save(state)
            delay(pauseMs) // an answer changes the state with every token
        }
    }

    /** Go on with another chat. An answer in the making ends. */
    suspend fun open(id: String) {
        leave()
        val chat = withContext(files) { store.read(id) }
        if (chat == null) controller.tell(Notice(Notice.Kind.CHAT_KEPT_ASIDE, id)) else controller.open(chat)
    }

    /** Begin a new chat. An answer in the making ends. */
    suspend fun begin() {
        leave()
        controller.newConversation(withContext(files) { store.newName() })
    }

    suspend fun rename(id: String, title: String) {
        if (id == controller.state.value.id) return controller.rename(title)
        writing.withLock { withContext(files) { store.rename(id, title) } }
    }

    suspend fun delete(id: String) {
        val isShown = id == controller.state.value.id
        if (isShown) begin()
        writing.withLock { withContext(files) { store.delete(id) } }
    }

    /** The newest first. */
    suspend fun list(query: String = ""): List<ChatSummary> {
        save(controller.state.value)
        return withContext(files) { store.list(query) }
    }

    /** Null where it cannot be read. */
    suspend fun export(id: String): String? {
        save(controller.state.value)
        return withContext(files) { store.read(id) }?.toMarkdown()
    }

    private suspend fun leave() {
        if (controller.state.value.canCancel) controller.cancel()
        save(controller.state.value)
    }

    private suspend fun save(state: ChatState) {
        if (state.id.isEmpty()) return
        try {
            writing.withLock { withContext(files) { store.write(state) } }
            isFailing = false
        } catch (error: IOException) {
            if (!isFailing) controller.tell(Notice(Notice.Kind.NOT_SAVED, error.message.orEmpty())) // once, and not for every token
            isFailing = true
        }
    }
}

/** A chat to give to others: Markdown, as it was written. */
fun ChatState.toMarkdown(): String = buildString {
    append("# ").append(shownTitle).append('\n')
    if (settings.systemPrompt.isNotBlank()) append("\n> ").append(settings.systemPrompt.replace("\n", "\n> ")).append('\n')
    for (message in messages) {
        append(if (message.role == Role.USER) "\n**You**" else "\n**Model**").append("\n\n")
        for (attachment in message.attachments) append("[").append(attachment.kind.name.lowercase()).append("]\n\n")
        append(message.text.trimEnd()).append('\n')
        if (message.completion != Completion.COMPLETE) append("\n*").append(message.completion.name.lowercase()).append("*\n")
    }
}
