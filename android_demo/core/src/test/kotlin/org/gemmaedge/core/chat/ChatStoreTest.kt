package org.gemmaedge.core.chat

import java.io.File
import java.io.IOException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class ChatStoreTest {
    @get:Rule val temporary = TemporaryFolder()

    private val folder by lazy { File(temporary.root, "chats") }
    private val former by lazy { File(temporary.root, "chat.json") }
    private val engine = ScriptedEngine()
    private var count = 0

    private fun store() = ChatStore(folder, former) { "new${count++}" }

    private fun chat(id: String, question: String, answer: String = "answer", attachments: List<Attachment> = emptyList()) =
        ChatState(id = id, messages = listOf(ChatMessage(Role.USER, question, attachments), ChatMessage(Role.MODEL, answer)))

    private fun written(id: String, question: String, changedMs: Long, answer: String = "answer") {
        store().write(chat(id, question, answer))
        File(folder, "$id.json").setLastModified(changedMs)
    }

    /** A process with its chats; at the end, it is killed. */
    private fun process(action: suspend CoroutineScope.(Chats, ChatController) -> Unit) = runBlocking {
        withTimeout(60_000) {
            val controller = ChatController(engine, this)
            val chats = Chats(store(), controller, pauseMs = 1)
            val keeping = launch { chats.restoreAndKeep() }
            chats.untilRestored()
            action(chats, controller)
            keeping.cancel()
        }
    }

    private suspend fun ChatController.say(text: String, answer: String) {
        engine.answers += ScriptedEngine.Answer(listOf(answer))
        if (!state.value.canSend) load(LoadRequest("m.litertlm"))
        state.first { it.canSend }
        send(text)
        state.first { it.phase == Phase.READY }
    }

    @Test
    fun `the chat that changed last is opened`() {
        assertEquals(ChatState(id = "new0"), store().last())
        assertFalse("nothing is written for nothing", folder.exists())
        written("a", "one", 2_000_000)
        written("b", "two", 1_000_000)
        assertEquals(chat("a", "one"), store().last())
        assertNull(store().read("c"))
    }

    @Test
    fun `the one chat of an older version is the first of many`() {
        former.writeText(chat("", "old").toJson())
        assertEquals(chat("new0", "old"), store().last())
        assertFalse(former.exists())
    }

    @Test
    fun `what cannot be read is kept aside and never written over`() {
        written("good", "one", 1_000_000)
        for (content in listOf("{", "", "{\"version\":9}", "\u0000\u0000\u0000")) {
            File(folder, "bad.json").apply { writeText(content) }.setLastModified(2_000_000)
            val opened = store().last()
            assertEquals("good", opened.id)
            assertEquals(Notice.Kind.CHAT_KEPT_ASIDE, opened.notice?.kind)
            val aside = File(folder, opened.notice!!.detail)
            assertEquals(content, aside.readText())
        }
        val numbers = folder.list()!!.mapNotNull { it.substringAfter("bad.json.unreadable-", "").toIntOrNull() }
        assertEquals(listOf(1, 2, 3, 4), numbers.sorted())
        former.writeText("not a chat")
        former.setLastModified(3_000_000)
        assertEquals(Notice.Kind.CHAT_KEPT_ASIDE, store().last().notice?.kind)
        assertTrue(folder.listFiles()!!.any { it.readText() == "not a chat" })
    }

    @Test
    fun `a chat half written by a dying process is the former one`() {
        written("a", "one", 1_000_000)
        File(folder, "a.json.writing").writeText("{\"vers")
        File(folder, "a.writing").writeText("{\"vers")
        assertEquals(listOf("a"), store().list().map { it.id })
        File(folder, "folder.json").mkdirs()
        assertEquals(chat("a", "one"), store().last())
    }

    @Test
    fun `a store that cannot be written says so and keeps what is there`() {
        folder.writeText("a file in the place of the folder")
        assertEquals("chats: cannot be made", assertThrows(IOException::class.java) { store().write(chat("a", "one")) }.message)
        assertThrows(IllegalArgumentException::class.java) { store().write(chat("../a", "one")) }
        process { _, controller ->
            controller.say("Hello", "Good day")
            assertEquals(Notice.Kind.NOT_SAVED, controller.state.first { it.notice != null }.notice?.kind)
        }
    }

    @Test
    fun `twenty chats, searched, renamed, deleted`() {
        repeat(20) { written("c$it", "Question $it about cats", 1_000_000L * (it + 1), "It is ${"animal ".repeat(20)} number $it") }
        val store = store()
        assertEquals((19 downTo 0).map { "c$it" }, store.list().map { it.id })
        assertEquals(listOf("c17"), store.list("cats NUMBER 17").map { it.id })
        assertTrue(store.list("number 17").single().excerpt.endsWith("animal  number 17"))
        assertEquals(emptyList<ChatSummary>(), store.list("dogs"))
        store.rename("c3", "Three")
        assertEquals("a new name is no new word", "c19", store.list().first().id)
        assertEquals("Three", store.list("three").single().title)
        store.rename("none", "x")
        store.delete("c3")
        assertEquals(19, store.list().size)
    }

    @Test
    fun `attachments go with the last chat that has them`() {
        val (own, shared) = listOf("own.jpg", "shared.jpg").map { temporary.newFile(it) }
        fun image(file: File) = Attachment(Attachment.Kind.IMAGE, file.path)
        store().write(chat("a", "one", attachments = listOf(image(own), image(shared))))
        store().write(chat("b", "two", attachments = listOf(image(shared))))
        store().delete("a")
        assertFalse(own.exists())
        assertTrue(shared.exists())
    }

    @Test
    fun `chats are opened, begun and left with every word saved`() {
        process { chats, controller ->
            controller.say("one", "1")
            chats.begin()
            controller.say("two", "2")
            chats.rename(controller.state.value.id, "Second")
            val (second, first) = chats.list()
            assertEquals(listOf("Second", "one"), listOf(second.title, first.title))
            chats.open(first.id)
            controller.say("three", "3")
            assertEquals("start [] [one, 1]", engine.calls[engine.calls.size - 2])
            chats.rename(second.id, "Two")
            assertEquals("# Two\n\n**You**\n\ntwo\n\n**Model**\n\n2\n", chats.export(second.id))
            assertNull(chats.export("none"))
        }
        process { chats, controller ->
            assertEquals(listOf("one", "1", "three", "3"), controller.state.value.messages.map { it.text })
            chats.delete(controller.state.value.id)
            assertEquals(emptyList<ChatMessage>(), controller.state.value.messages)
            assertEquals(listOf("Two"), chats.list().map { it.title })
            chats.open("none")
            assertEquals(Notice.Kind.CHAT_KEPT_ASIDE, controller.state.value.notice?.kind)
        }
    }

    @Test
    fun `another chat is opened while an answer is being written`() = process { chats, controller ->
        controller.say("one", "1")
        val first = controller.state.value.id
        chats.begin()
        engine.answers += ScriptedEngine.Answer(listOf("Once"), ScriptedEngine.End.WAIT_FOR_CANCEL)
        controller.send("Tell")
        controller.state.first { it.messages.last().text == "Once" }
        chats.open(first)
        assertEquals(listOf("one", "1"), controller.state.value.messages.map { it.text })
        assertEquals(Completion.CANCELLED, store().read(chats.list("Tell").single().id)!!.messages.last().completion)
        controller.say("two", "2")
        while (controller.state.value.phase != Phase.READY) yield()
    }
}
