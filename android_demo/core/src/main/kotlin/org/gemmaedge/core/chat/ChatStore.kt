package org.gemmaedge.core.chat

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import org.gemmaedge.core.json.JsonException

/** A line of the list of chats. [excerpt]: where the words that were searched for stand, or how the chat ends. */
data class ChatSummary(val id: String, val title: String, val excerpt: String, val changedMs: Long)

/**
 * The chats on disk, a file each. Android may end the process at any time, without a word: a file is replaced whole or
 * not at all, and one that cannot be read is kept aside under another name and never written over.
 *
 * Functions that touch files are not for the main thread.
 *
 * @param former the file of the one chat of an older version, which becomes the first of many.
 */
class ChatStore(private val folder: File, private val former: File? = null, private val newId: () -> String = ::timeOfNow) {
    /** The chat that was changed last, or a new one. */
    fun last(): ChatState {
        takeOverFormer()
        var aside: File? = null
        for (file in files()) {
            val read = readOrKeepAside(file)
            read.chat?.let { return it.copy(notice = aside?.let(::noticeOf) ?: it.notice) }
            aside = aside ?: read.aside
        }
        return ChatState(id = newId(), notice = aside?.let(::noticeOf))
    }

    /** A chat, or null where there is none, or none that can be read: then its file is kept aside. */
    fun read(id: String): ChatState? = readOrKeepAside(fileOf(id)).chat

    /** The name of a chat to begin. */
    fun newName(): String = generateSequence(newId(), ::next).first { !fileOf(it).exists() }

    /** Replace the file of [chat], where that has changed. Throws IOException; then the former file is still there. */
    fun write(chat: ChatState) {
        require(chat.id.isNotEmpty() && File(chat.id).name == chat.id) { "a name of a chat, not \"${chat.id}\"" }
        if (chat.messages.isEmpty() && chat.title == null && !fileOf(chat.id).exists()) return // nothing to keep
        if (!folder.isDirectory && !folder.mkdirs()) throw IOException("${folder.name}: cannot be made")
        val content = chat.toJson().toByteArray()
        if (fileOf(chat.id).let { it.length() == content.size.toLong() && it.readBytes().contentEquals(content) }) return
        val written = File(folder, chat.id + UNFINISHED)
        FileOutputStream(written).use { output ->
            output.write(content)
            output.fd.sync() // or a power cut leaves an empty file under the good name
        }
        if (!written.renameTo(fileOf(chat.id))) throw IOException("${fileOf(chat.id).name}: cannot be replaced")
    }

    fun rename(id: String, title: String) {
        val chat = read(id) ?: return
        val changedMs = fileOf(id).lastModified()
        write(chat.copy(title = title))
        fileOf(id).setLastModified(changedMs) // a new name is no new word
    }

    /** The attachments that no other chat has go with it. */
    fun delete(id: String) {
        val gone = read(id)?.attachments().orEmpty()
        fileOf(id).delete()
        val kept = files().mapNotNull { parsed(it)?.attachments() }.flatten().toSet()
        (gone - kept).forEach { File(it).delete() }
    }

    /** Chats with all of the words in title or messages, the newest first. What cannot be read is left out. */
    fun list(query: String = ""): List<ChatSummary> {
        val words = query.split(' ').filter { it.isNotBlank() }
        return files().mapNotNull { file ->
            val chat = parsed(file) ?: return@mapNotNull null
            val texts = listOf(chat.shownTitle) + chat.messages.map { it.text }
            if (!words.all { word -> texts.any { it.contains(word, ignoreCase = true) } }) return@mapNotNull null
            val found = words.firstOrNull()?.let { word -> chat.messages.find { it.text.contains(word, ignoreCase = true) }?.text }
            val excerpt = excerptOf(found ?: chat.messages.lastOrNull()?.text.orEmpty(), words.firstOrNull())
            ChatSummary(chat.id, chat.shownTitle, excerpt, file.lastModified())
        }
    }

    /** The newest first. */
    private fun files(): List<File> =
        folder.listFiles().orEmpty().filter { it.isFile && it.name.endsWith(SUFFIX) }
            .sortedWith(compareByDescending<File> { it.lastModified() }.thenByDescending { it.name })

    private fun fileOf(id: String) = File(folder, id + SUFFIX)

    private fun parsed(file: File): ChatState? =
        try {
            chatFromJson(file.readText()).copy(id = file.name.removeSuffix(SUFFIX))
        } catch (_: IOException) {
            null
        } catch (_: JsonException) {
            null
        }

    private class Read(val chat: ChatState?, val aside: File?)

    private fun readOrKeepAside(file: File): Read {
        if (!file.exists()) return Read(null, null)
        parsed(file)?.let { return Read(it, null) }
        val free = generateSequence(1) { it + 1 }.map { File(file.path + UNREADABLE + it) }.first { !it.exists() }
        return Read(null, if (file.renameTo(free)) free else file)
    }

    private fun takeOverFormer() {
        if (former?.exists() != true) return
        folder.mkdirs()
        val target = fileOf(newName())
        val changedMs = former.lastModified()
        if (former.renameTo(target)) target.setLastModified(changedMs)
    }

    private fun next(id: String) = "$id-"

    private companion object {
        const val SUFFIX = ".json"
        const val UNFINISHED = ".writing"
        const val UNREADABLE = ".unreadable-"
        const val EXCERPT_CHARS = 80

        fun timeOfNow() = System.currentTimeMillis().toString()

        fun noticeOf(aside: File) = Notice(Notice.Kind.CHAT_KEPT_ASIDE, aside.name)

        fun ChatState.attachments() = messages.flatMap { it.attachments }.map { it.path }.toSet()

        /** One line around [word]. */
        fun excerptOf(text: String, word: String?): String {
            val at = word?.let { text.indexOf(it, ignoreCase = true) }?.takeIf { it >= 0 } ?: 0
            val begin = maxOf(0, at - EXCERPT_CHARS / 4)
            return text.drop(begin).take(EXCERPT_CHARS).replace('\n', ' ').trim()
        }
    }
}
