package org.gemmaedge.core.chat

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class ChatStateTest {
    private val request = LoadRequest("m.litertlm", Backends(Accelerator.GPU))
    private val stats = GenerationStats(tokens = 5, firstTokenMs = 100, totalMs = 300)

    private fun state(vararg events: ChatEvent) = events.fold(ChatState()) { state, event -> state.after(event) }

    private val loading = state(ChatEvent.LoadStarted(request))
    private val ready = loading.after(ChatEvent.Loaded)
    private val generating = ready.after(ChatEvent.Sent("Hello"))
    private val states = mapOf(
        Phase.IDLE to ChatState(),
        Phase.LOADING to loading,
        Phase.READY to ready,
        Phase.GENERATING to generating,
        Phase.CANCELLED to generating.after(ChatEvent.Cancelled(stats)),
        Phase.FAILED to generating.after(ChatEvent.GenerationFailed("broken")),
        Phase.MEASURING to ready.after(ChatEvent.MeasureStarted),
        Phase.SERVING to ready.after(ChatEvent.ServeStarted),
        Phase.STUCK to generating.after(ChatEvent.Stuck("asleep")),
    )

    @Test
    fun `every event in every phase`() {
        val anyPhase = "IDLE LOADING READY GENERATING CANCELLED FAILED MEASURING SERVING STUCK"
        val expected = mapOf(
            ChatEvent.LoadStarted(request) to "LOADING - LOADING - LOADING LOADING - - -",
            ChatEvent.FellBack(Backends(), "no GPU") to "- LOADING - GENERATING - - - - -",
            ChatEvent.Loaded to "- READY - - - - - - -",
            ChatEvent.LoadFailed("too large") to "- FAILED - - - - - - -",
            ChatEvent.Sent("Hi") to "- - GENERATING - GENERATING GENERATING - - -",
            ChatEvent.Wrote("x") to "- - - GENERATING - - - - -",
            ChatEvent.Answered(stats) to "- - - READY - - - - -",
            ChatEvent.Cancelled(stats) to "- - - CANCELLED - - - - -",
            ChatEvent.GenerationFailed("broken") to "- - - FAILED - - - - -",
            ChatEvent.SettingsChanged(ChatSettings()) to anyPhase,
            ChatEvent.Cleared() to "IDLE LOADING READY - READY READY MEASURING SERVING STUCK",
            ChatEvent.Opened(ChatState(id = "2")) to "IDLE LOADING READY - READY READY MEASURING SERVING STUCK",
            ChatEvent.Rewound(0) to "- - - - READY READY - - -",
            ChatEvent.Renamed("x") to anyPhase,
            ChatEvent.Told(Notice(Notice.Kind.NOT_SAVED)) to anyPhase,
            ChatEvent.Released(forMemory = false) to "IDLE IDLE IDLE IDLE IDLE IDLE IDLE IDLE STUCK",
            ChatEvent.ReleaseFailed("no") to anyPhase,
            ChatEvent.Stuck("asleep") to "STUCK STUCK STUCK STUCK STUCK STUCK STUCK STUCK STUCK",
            ChatEvent.CameBack to "- - - - - - - - IDLE",
            ChatEvent.NoticeRead to anyPhase,
            ChatEvent.Called(ToolCall("f", "{}", "1")) to "- - - GENERATING - - - - -",
            ChatEvent.MeasureStarted to "MEASURING - MEASURING - MEASURING MEASURING - - -",
            ChatEvent.MeasureEnded to "- - - - - - IDLE - -",
            ChatEvent.ServeStarted to "- - SERVING - SERVING SERVING - - -",
            ChatEvent.ServeEnded to "- - - - - - - READY -",
        )
        assertEquals(Phase.entries.toSet(), states.keys)
        for ((event, row) in expected) {
            val found = Phase.entries.joinToString(" ") { phase ->
                runCatching { states.getValue(phase).after(event).phase.name }
                    .recover { error -> "-".also { assertTrue("$error", error is IllegalStateException) } }
                    .getOrThrow()
            }
            assertEquals("$event", row, found)
        }
    }

    @Test
    fun `an impossible event says so`() {
        val error = assertThrows(IllegalStateException::class.java) { ChatState().after(ChatEvent.Wrote("x")) }
        assertEquals("Wrote cannot happen in IDLE", error.message)
    }

    @Test
    fun `an answer grows and ends`() {
        val written = generating.after(ChatEvent.Wrote("Good ")).after(ChatEvent.Wrote("day"))
        assertEquals(listOf("Hello", "Good day"), written.messages.map { it.text })
        assertEquals(Completion.WRITING, written.messages[1].completion)
        val answered = written.after(ChatEvent.Answered(stats))
        assertEquals(ChatMessage(Role.MODEL, "Good day", completion = Completion.COMPLETE, stats = stats), answered.messages[1])
        assertEquals(20.0, stats.tokensPerSecond!!, 1e-9)
    }

    @Test
    fun `speed needs two tokens and time between them`() {
        assertNull(GenerationStats(1, 100, 300).tokensPerSecond)
        assertNull(GenerationStats(3, 100, 100).tokensPerSecond)
    }

    @Test
    fun `a failed load leaves no model, a failed answer does`() {
        val failed = loading.after(ChatEvent.LoadFailed("too large"))
        assertNull(failed.loaded)
        assertFalse(failed.canSend)
        assertEquals(Notice(Notice.Kind.LOAD_FAILED, "too large"), failed.notice)
        assertTrue(states.getValue(Phase.FAILED).canSend)
        assertEquals(Notice(Notice.Kind.GENERATION_FAILED, "broken"), states.getValue(Phase.FAILED).notice)
    }

    @Test
    fun `a fall-back says so and keeps the rest of the request`() {
        val fallen = loading.after(ChatEvent.FellBack(request.backends.fallback!!, "no OpenCL"))
        assertEquals(request.copy(backends = Backends(Accelerator.CPU)), fallen.loaded)
        assertEquals(Notice(Notice.Kind.FELL_BACK_TO_CPU, "no OpenCL"), fallen.after(ChatEvent.Loaded).notice)
        assertNull(fallen.after(ChatEvent.NoticeRead).notice)
    }

    @Test
    fun `backends fall back to the CPU and no further`() {
        val mixed = Backends(Accelerator.CPU, vision = Accelerator.GPU, audio = Accelerator.CPU)
        assertEquals(Backends(Accelerator.CPU, Accelerator.CPU, Accelerator.CPU), mixed.fallback)
        assertNull(mixed.fallback!!.fallback)
        assertNull(Backends().fallback)
    }

    @Test
    fun `release keeps the chat and ends the answer in the making`() {
        val released = generating.after(ChatEvent.Wrote("Good")).after(ChatEvent.Released(forMemory = true))
        assertEquals(Phase.IDLE, released.phase)
        assertNull(released.loaded)
        assertEquals(listOf(Completion.COMPLETE, Completion.CANCELLED), released.messages.map { it.completion })
        assertEquals(Notice(Notice.Kind.RELEASED_FOR_MEMORY), released.notice)
    }

    @Test
    fun `another chat takes the place of the first, the model stays`() {
        val messages = listOf(ChatMessage(Role.USER, "Meow?"))
        val other = ChatState(id = "2", title = "Cats", messages = messages, notice = Notice(Notice.Kind.INTERRUPTED))
        val opened = states.getValue(Phase.FAILED).after(ChatEvent.Opened(other))
        assertEquals(other.copy(phase = Phase.READY, loaded = request), opened)
        val begun = opened.after(ChatEvent.Cleared("3"))
        assertEquals(ChatState(Phase.READY, request, id = "3", notice = Notice(Notice.Kind.INTERRUPTED)), begun)
    }

    @Test
    fun `a chat is called by its title, or by its first words`() {
        val chat = ChatState(messages = listOf(ChatMessage(Role.USER, "What is a cat?\nTell me."), ChatMessage(Role.MODEL, "An animal")))
        assertEquals("What is a cat?", chat.shownTitle)
        assertEquals("Cats", chat.after(ChatEvent.Renamed("Cats")).shownTitle)
        assertEquals("", ChatState().shownTitle)
    }

    @Test
    fun `history is what was answered`() {
        val cancelledEmpty = ready.after(ChatEvent.Sent("one")).after(ChatEvent.Cancelled(stats))
        val cancelled = cancelledEmpty.after(ChatEvent.Sent("two")).after(ChatEvent.Wrote("2")).after(ChatEvent.Cancelled(stats))
        val failed = cancelled.after(ChatEvent.Sent("three")).after(ChatEvent.Wrote("3")).after(ChatEvent.GenerationFailed("x"))
        val answered = failed.after(ChatEvent.Sent("four")).after(ChatEvent.Wrote("4")).after(ChatEvent.Answered(stats))
        assertEquals(listOf("two", "2", "four", "4"), answered.history.map { it.text })
        assertEquals(listOf("one", "", "two", "2", "three", "3", "four", "4"), answered.messages.map { it.text })
    }

    @Test
    fun `history has the attachments that the model takes`() {
        val image = Attachment(Attachment.Kind.IMAGE, "i.jpg")
        val sound = Attachment(Attachment.Kind.AUDIO, "s.wav")
        val past = listOf(ChatMessage(Role.USER, "What?", listOf(image, sound)), ChatMessage(Role.MODEL, "A cat"))
        fun attached(backends: Backends) = ChatState(loaded = request.copy(backends = backends), messages = past).history[0].attachments
        assertEquals(listOf(image, sound), attached(Backends(vision = Accelerator.GPU, audio = Accelerator.CPU)))
        assertEquals(listOf(sound), attached(Backends(audio = Accelerator.CPU)))
        assertEquals(emptyList<Attachment>(), attached(Backends()))
    }

    @Test
    fun `settings that cannot be`() {
        assertThrows(IllegalArgumentException::class.java) { SamplerSettings(topK = 0) }
        assertThrows(IllegalArgumentException::class.java) { SamplerSettings(topP = 1.1) }
        assertThrows(IllegalArgumentException::class.java) { SamplerSettings(temperature = -1.0) }
        assertThrows(IllegalArgumentException::class.java) { ChatSettings(maxAnswerTokens = 0) }
    }
}
