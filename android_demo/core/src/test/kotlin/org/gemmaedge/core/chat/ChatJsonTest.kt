package org.gemmaedge.core.chat

import org.gemmaedge.core.json.JsonException
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class ChatJsonTest {
    private val chat = ChatState(
        phase = Phase.READY,
        loaded = LoadRequest("m.litertlm"),
        settings = ChatSettings("Be \"brief\".", SamplerSettings(1, 0.5, 0.0, 7), maxAnswerTokens = 20),
        messages = listOf(
            ChatMessage(Role.USER, "What is this?", listOf(Attachment(Attachment.Kind.IMAGE, "images/1.jpg"))),
            ChatMessage(Role.MODEL, "A cat.\n\u00fc", stats = GenerationStats(4, 10, 30)),
        ),
        notice = Notice(Notice.Kind.FELL_BACK_TO_CPU),
    )

    @Test
    fun `a chat outlives its process, the model does not`() {
        assertEquals(chat.copy(phase = Phase.IDLE, loaded = null, notice = null), chatFromJson(chat.toJson()))
        assertEquals(ChatState(), chatFromJson(ChatState().toJson()))
    }

    @Test
    fun `a process may end in any phase`() {
        val ready = ChatState(id = "1").after(ChatEvent.LoadStarted(LoadRequest("m.litertlm"))).after(ChatEvent.Loaded)
        val writing = ready.after(ChatEvent.Sent("Hello")).after(ChatEvent.Wrote("Good"))
        val ends = listOf(
            ChatState(id = "1") to "IDLE [] null",
            ready to "IDLE [] null",
            ready.after(ChatEvent.LoadStarted(LoadRequest("m.litertlm"))) to "IDLE [] null",
            ready.after(ChatEvent.Sent("Hello")) to "IDLE [COMPLETE, CANCELLED] INTERRUPTED",
            writing to "IDLE [COMPLETE, CANCELLED] INTERRUPTED",
            writing.after(ChatEvent.Answered(GenerationStats(1, 2, 3))) to "IDLE [COMPLETE, COMPLETE] null",
            writing.after(ChatEvent.Cancelled(GenerationStats(1, 2, 3))) to "IDLE [COMPLETE, CANCELLED] null",
            writing.after(ChatEvent.GenerationFailed("broken")) to "IDLE [COMPLETE, FAILED] null",
            ready.after(ChatEvent.MeasureStarted) to "IDLE [] null",
            ready.after(ChatEvent.ServeStarted) to "IDLE [] null",
            writing.after(ChatEvent.Stuck("asleep")) to "IDLE [COMPLETE, CANCELLED] null",
        )
        assertEquals(Phase.entries.toSet(), ends.map { it.first.phase }.toSet())
        for ((state, expected) in ends) {
            val restored = chatFromJson(state.toJson())
            assertEquals(expected, "${restored.phase} ${restored.messages.map { it.completion }} ${restored.notice?.kind}")
            assertEquals("1", restored.id)
        }
    }

    @Test
    fun `the one chat of an older version has no name`() {
        val old = chat.toJson().replace("\"version\":2,\"id\":\"\",\"title\":null", "\"version\":1")
        assertEquals(chat.copy(phase = Phase.IDLE, loaded = null, notice = null), chatFromJson(old))
    }

    @Test
    fun `an interrupted answer is kept as far as it came`() {
        val writing = chat.after(ChatEvent.Sent("And this?")).after(ChatEvent.Wrote("A do"))
        val restored = chatFromJson(writing.toJson())
        assertEquals(Notice(Notice.Kind.INTERRUPTED), restored.notice)
        assertEquals("A do", restored.messages.last().text)
        assertEquals(Completion.CANCELLED, restored.messages.last().completion)
        assertEquals(4, restored.history.size)
    }

    @Test
    fun `what was not written here is refused`() {
        val cases = mapOf(
            "" to "character 0: found the end, expected a value",
            chat.toJson().replace("\"version\":2", "\"version\":3") to "version: found 3, expected 2",
            chat.toJson().replace("\"MODEL\"", "\"TOOL\"") to "found \"TOOL\", expected a Role",
            chat.toJson().replace("\"top_p\":0.5", "\"top_p\":2") to "settings: topP is 2.0, expected 0 to 1",
        )
        for ((text, message) in cases) {
            assertEquals(message, assertThrows(JsonException::class.java) { chatFromJson(text) }.message)
        }
    }
}
