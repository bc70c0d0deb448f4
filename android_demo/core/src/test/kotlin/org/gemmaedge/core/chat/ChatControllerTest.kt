package org.gemmaedge.core.chat

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.gemmaedge.core.chat.ScriptedEngine.Answer
import org.gemmaedge.core.chat.ScriptedEngine.End
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class ChatControllerTest {
    private val engine = ScriptedEngine()
    private var nowMs = 0L
    private val impatient = Patience(loadMs = 400, firstPieceMs = 400, nextPieceMs = 400, stopMs = 400, releaseMs = 400)
    private val request = LoadRequest("m.litertlm")
    private val onGpu = LoadRequest("m.litertlm", Backends(Accelerator.GPU))

    /** runBlocking is the one thread that a controller asks for. */
    private fun test(
        initial: ChatState = ChatState(),
        patience: Patience = Patience(),
        action: suspend CoroutineScope.(ChatController) -> Unit,
    ) = runBlocking<Unit> {
        withTimeout(60_000) {
            action(ChatController(engine, this, { nowMs++ }, initial, patience))
            engine.wakeUp.complete(Unit)
        }
    }

    private suspend fun ChatController.until(phase: Phase): ChatState = state.first { it.phase == phase }

    private suspend fun ChatController.loaded(request: LoadRequest = this@ChatControllerTest.request): ChatController {
        load(request)
        until(Phase.READY)
        engine.calls.clear()
        return this
    }

    private fun answer(vararg pieces: String, end: End = End.DONE) = engine.answers.addLast(Answer(pieces.toList(), end))

    @Test
    fun `load, ask, answer`() = test { chat ->
        answer("Good ", "day")
        engine.gate = CompletableDeferred()
        chat.load(request)
        assertEquals(Phase.LOADING, chat.state.value.phase)
        engine.gate.complete(Unit)
        chat.until(Phase.READY)
        chat.send("Hello")
        val state = chat.until(Phase.READY)
        assertEquals(listOf("Hello", "Good day"), state.messages.map { it.text })
        assertEquals(2, state.messages[1].stats!!.tokens)
        assertTrue(state.messages[1].stats!!.totalMs > 0)
        assertEquals(listOf("release", "load CPU", "start [] []", "send Hello"), engine.calls)
    }

    @Test
    fun `one conversation goes on from message to message`() = test { chat ->
        answer("a")
        answer("b")
        chat.loaded()
        for (text in listOf("one", "two")) {
            chat.send(text)
            chat.until(Phase.READY)
        }
        assertEquals(listOf("start [] []", "send one", "send two"), engine.calls)
    }

    @Test
    fun `a cancelled answer stays, and the engine is told of it`() = test { chat ->
        answer("Once upon", end = End.WAIT_FOR_CANCEL)
        answer("The end")
        chat.loaded().send("Tell")
        chat.state.first { it.messages.last().text == "Once upon" }
        chat.cancel()
        val cancelled = chat.until(Phase.CANCELLED)
        assertEquals(Completion.CANCELLED, cancelled.messages[1].completion)
        assertEquals("at once, while the engine ends its step", "send Tell", engine.calls.last())
        chat.send("Go on")
        assertEquals("The end", chat.until(Phase.READY).messages.last().text)
        assertEquals(listOf("stopped", "start [] [Tell, Once upon]", "send Go on"), engine.calls.takeLast(3))
    }

    @Test
    fun `cancelled before the first token`() = test { chat ->
        answer(end = End.WAIT_FOR_CANCEL)
        answer("x")
        chat.loaded().send("Tell")
        chat.cancel()
        chat.until(Phase.CANCELLED)
        chat.send("Again")
        chat.until(Phase.READY)
        assertEquals(listOf("start [] []", "send Again"), engine.calls.takeLast(2))
    }

    @Test
    fun `a failed answer is shown and forgotten by the engine`() = test { chat ->
        answer("Onc", end = End.FAIL)
        answer("x")
        chat.loaded().send("Tell")
        val failed = chat.until(Phase.FAILED)
        assertEquals(Notice(Notice.Kind.GENERATION_FAILED, "the engine broke"), failed.notice)
        assertEquals(Completion.FAILED, failed.messages[1].completion)
        chat.send("Again")
        assertNull(chat.until(Phase.READY).notice)
        assertEquals(listOf("start [] []", "send Again"), engine.calls.takeLast(2))
    }

    @Test
    fun `a failed load says why, and another may follow`() = test { chat ->
        engine.failLoad = { UnsatisfiedLinkError("no such library") }
        chat.load(request)
        assertEquals(Notice(Notice.Kind.LOAD_FAILED, "no such library"), chat.until(Phase.FAILED).notice)
        assertThrows(IllegalStateException::class.java) { chat.send("Hello") }
        engine.failLoad = { null }
        chat.load(request)
        assertNull(chat.until(Phase.READY).notice)
    }

    @Test
    fun `a GPU that refuses the model is replaced by the CPU`() = test { chat ->
        engine.failLoad = { IllegalStateException("no OpenCL").takeIf { _ -> it.backends.text == Accelerator.GPU } }
        chat.load(onGpu)
        val state = chat.until(Phase.READY)
        assertEquals(Notice(Notice.Kind.FELL_BACK_TO_CPU, "no OpenCL"), state.notice)
        assertEquals(Backends(Accelerator.CPU), state.loaded?.backends)
        assertEquals(listOf("release", "load GPU", "release", "load CPU"), engine.calls)
    }

    @Test
    fun `where the CPU fails too, that is the reason`() = test { chat ->
        engine.failLoad = { IllegalStateException("no ${it.backends.text}") }
        chat.load(onGpu)
        assertEquals(Notice(Notice.Kind.LOAD_FAILED, "no CPU"), chat.until(Phase.FAILED).notice)
    }

    @Test
    fun `a GPU that fails at the first token is replaced too`() = test { chat ->
        answer(end = End.FAIL)
        answer("Good day")
        chat.loaded(onGpu).send("Hello")
        val state = chat.until(Phase.READY)
        assertEquals("Good day", state.messages[1].text)
        assertEquals(Notice.Kind.FELL_BACK_TO_CPU, state.notice?.kind)
        assertEquals(listOf("start [] []", "send Hello", "release", "load CPU", "start [] []", "send Hello"), engine.calls)
    }

    @Test
    fun `a GPU that fails later is not replaced`() = test { chat ->
        answer("Go", end = End.FAIL)
        chat.loaded(onGpu).send("Hello")
        assertEquals(Accelerator.GPU, chat.until(Phase.FAILED).loaded?.backends?.text)
    }

    @Test
    fun `low memory ends the answer, frees the model and keeps the chat`() = test { chat ->
        answer("Once", end = End.WAIT_FOR_CANCEL)
        chat.loaded().send("Tell")
        chat.state.first { it.messages.last().text == "Once" }
        chat.release(forMemory = true)
        val state = chat.state.value
        assertEquals(Phase.IDLE, state.phase)
        assertEquals(Notice(Notice.Kind.RELEASED_FOR_MEMORY), state.notice)
        assertEquals("Once", state.messages[1].text)
        chat.load(request)
        chat.until(Phase.READY)
        assertEquals(listOf("stopped", "release", "release", "load CPU"), engine.calls.takeLast(4))
        assertEquals(Phase.READY, chat.state.value.phase)
    }

    @Test
    fun `a release while loading ends the load`() = test { chat ->
        engine.gate = CompletableDeferred()
        chat.load(request)
        chat.release(forMemory = false)
        assertEquals(Phase.IDLE, chat.state.value.phase)
        engine.gate.complete(Unit)
        chat.load(request)
        chat.until(Phase.READY)
        assertEquals("release", engine.calls[engine.calls.size - 3])
    }

    @Test
    fun `a new conversation and new settings start again`() = test { chat ->
        repeat(3) { answer("x") }
        chat.loaded().send("one")
        chat.until(Phase.READY)
        chat.change(ChatSettings(systemPrompt = "brief"))
        chat.send("two")
        chat.until(Phase.READY)
        chat.newConversation()
        assertEquals(emptyList<ChatMessage>(), chat.state.value.messages)
        chat.send("three")
        chat.until(Phase.READY)
        assertEquals(
            listOf("start [] []", "send one", "start [brief] [one, x]", "send two", "start [brief] []", "send three"),
            engine.calls,
        )
    }

    @Test
    fun `settings that change while the history is read apply to the next message`() = test { chat ->
        answer("1")
        answer("2")
        engine.historyGate = CompletableDeferred()
        chat.loaded().send("one")
        chat.change(ChatSettings(systemPrompt = "brief"))
        engine.historyGate.complete(Unit)
        chat.until(Phase.READY)
        chat.send("two")
        chat.until(Phase.READY)
        assertEquals(listOf("start [] []", "send one", "start [brief] [one, 1]", "send two"), engine.calls)
    }

    @Test
    fun `an answer stopped while the CPU takes over leaves a model to ask`() = test { chat ->
        answer(end = End.FAIL)
        answer("Good day")
        chat.loaded(onGpu)
        engine.gate = CompletableDeferred()
        chat.send("Hello")
        chat.state.first { it.notice?.kind == Notice.Kind.FELL_BACK_TO_CPU }
        chat.cancel()
        engine.gate.complete(Unit)
        assertEquals(Accelerator.CPU, chat.until(Phase.CANCELLED).loaded?.backends?.text)
        chat.send("Again")
        assertEquals("Good day", chat.until(Phase.READY).messages.last().text)
    }

    @Test
    fun `a release while the CPU takes over does not end another load`() = test { chat ->
        engine.failLoad = {
            val fails = it.backends.text == Accelerator.GPU
            if (fails) engine.gate = CompletableDeferred() // the CPU takes its time
            IllegalStateException("no OpenCL").takeIf { fails }
        }
        chat.load(onGpu)
        chat.state.first { it.notice?.kind == Notice.Kind.FELL_BACK_TO_CPU }
        chat.release(forMemory = false)
        chat.load(request)
        engine.gate.complete(Unit)
        chat.until(Phase.READY)
        assertEquals("the newer load is the last", listOf("release", "release", "load CPU"), engine.calls.takeLast(3))
    }

    @Test
    fun `a restored chat goes on`() {
        val past = ChatState(messages = listOf(ChatMessage(Role.USER, "one"), ChatMessage(Role.MODEL, "1")))
        test(chatFromJson(past.toJson())) { chat ->
            answer("2")
            chat.loaded().send("two")
            assertEquals(listOf("one", "1", "two", "2"), chat.until(Phase.READY).messages.map { it.text })
            assertEquals("start [] [one, 1]", engine.calls[0])
        }
    }

    @Test
    fun `an engine that falls silent is given up, and the chat goes on`() = test(patience = impatient) { chat ->
        answer("Once", end = End.SILENT)
        answer("Good day")
        chat.loaded().send("Tell")
        val failed = chat.until(Phase.FAILED)
        assertEquals(Notice(Notice.Kind.GENERATION_FAILED, "the engine wrote nothing for 0.4 s"), failed.notice)
        assertEquals("Once", failed.messages.last().text)
        chat.send("Again")
        assertEquals("Good day", chat.until(Phase.READY).messages.last().text)
        assertEquals(listOf("start [] []", "send Again"), engine.calls.takeLast(2))
    }

    @Test
    fun `an engine that never calls back holds neither the chat nor a cancel`() = test(patience = impatient) { chat ->
        answer("Once", end = End.NEVER)
        chat.loaded().send("Tell")
        chat.state.first { it.messages.last().text == "Once" }
        chat.cancel()
        assertEquals(Phase.CANCELLED, chat.state.value.phase)
        chat.send("Still there?") // before anybody knows
        val stuck = chat.until(Phase.STUCK)
        val told = "the engine did not return within 0.4 s when it was told to stop: write an answer"
        assertEquals(Notice(Notice.Kind.ENGINE_STUCK, told), stuck.notice)
        assertEquals(listOf(Completion.COMPLETE, Completion.CANCELLED), stuck.messages.takeLast(2).map { it.completion })
        assertFalse(stuck.canSend || stuck.canLoad || stuck.canCancel)
        chat.release(forMemory = true)
        assertEquals("nothing that could be freed", Phase.STUCK, chat.state.value.phase)
        engine.wakeUp.complete(Unit)
        assertEquals(Notice(Notice.Kind.ENGINE_CAME_BACK), chat.until(Phase.IDLE).notice)
        assertEquals(listOf("send Tell", "woke up", "release"), engine.calls.takeLast(3))
        answer("Yes")
        chat.loaded().send("Still there?")
        assertEquals("Yes", chat.until(Phase.READY).messages.last().text)
    }

    @Test
    fun `an engine that fails late harms nobody`() = test(patience = impatient) { chat ->
        answer("Once", end = End.FAIL_LATE)
        chat.loaded().send("Tell")
        chat.until(Phase.STUCK)
        engine.wakeUp.complete(Unit)
        assertEquals(Notice(Notice.Kind.ENGINE_CAME_BACK), chat.until(Phase.IDLE).notice)
        assertEquals("Once", chat.state.value.messages.last().text)
    }

    @Test
    fun `a load that never ends is given up`() = test(patience = impatient) { chat ->
        engine.isLoadStuck = true
        chat.load(request)
        val reason = "the engine did not return within 0.4 s when it was told to stop: load the model"
        assertEquals(Notice(Notice.Kind.ENGINE_STUCK, reason), chat.until(Phase.STUCK).notice)
    }

    @Test
    fun `a release that never ends is given up, and so is a load behind it`() = test(patience = impatient) { chat ->
        chat.loaded()
        engine.isReleaseStuck = true
        chat.release(forMemory = false)
        assertEquals(Phase.IDLE, chat.state.value.phase)
        chat.load(request)
        assertNull(chat.until(Phase.STUCK).loaded)
        engine.isReleaseStuck = false
        engine.wakeUp.complete(Unit)
        chat.until(Phase.IDLE)
        assertEquals("the load was void", listOf("release", "release"), engine.calls)
    }

    @Test
    fun `a release that fails says so, and a load may follow`() = test { chat ->
        chat.loaded()
        engine.failRelease = IllegalStateException("close failed")
        chat.release(forMemory = false)
        assertEquals(Notice(Notice.Kind.RELEASE_FAILED, "close failed"), chat.state.first { it.notice != null }.notice)
        engine.failRelease = null
        chat.loaded()
        assertEquals(Phase.READY, chat.state.value.phase)
    }

    @Test
    fun `a question is edited, and what came after it is gone`() = test { chat ->
        for (text in listOf("1", "2", "one and a half")) answer(text)
        chat.loaded()
        for (text in listOf("one", "two")) {
            chat.send(text, listOf(Attachment(Attachment.Kind.IMAGE, "$text.jpg")))
            chat.until(Phase.READY)
        }
        chat.edit(2, "one, then")
        val edited = chat.until(Phase.READY)
        assertEquals(listOf("one", "1", "one, then", "one and a half"), edited.messages.map { it.text })
        assertEquals("two.jpg", edited.messages[2].attachments.single().path)
        assertEquals(listOf("start [] [one, 1]", "send one, then"), engine.calls.takeLast(2))
        assertThrows(IllegalStateException::class.java) { chat.edit(1, "x") }
    }

    @Test
    fun `an answer is written again`() = test { chat ->
        answer("Onc", end = End.FAIL)
        answer("Once")
        chat.loaded().send("Tell")
        chat.until(Phase.FAILED)
        chat.regenerate()
        assertEquals(listOf("Tell", "Once"), chat.until(Phase.READY).messages.map { it.text })
        assertEquals(listOf("start [] []", "send Tell"), engine.calls.takeLast(2))
    }

    @Test
    fun `cancelling nothing is a mistake of the caller`() = test { chat ->
        assertThrows(IllegalStateException::class.java) { chat.cancel() }
        chat.noticeRead()
    }
}
