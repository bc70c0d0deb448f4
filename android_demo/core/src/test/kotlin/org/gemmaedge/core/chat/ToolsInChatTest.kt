package org.gemmaedge.core.chat

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.gemmaedge.core.chat.ScriptedEngine.Answer
import org.gemmaedge.core.chat.ScriptedEngine.End
import org.gemmaedge.core.tools.Calculator
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Test

/** What shares the engine with the chat: tools, benchmarks, and those who are answered through the local server. */
class ToolsInChatTest {
    private val engine = ScriptedEngine()
    private val request = LoadRequest("m.litertlm")
    private val calling = ChatSettings(usesTools = true)

    private fun test(patience: Patience = Patience(), action: suspend (ChatController, CoroutineScope) -> Unit) =
        runBlocking<Unit> {
            withTimeout(60_000) {
                action(ChatController(engine, this, patience = patience, tools = listOf(Calculator())), this)
                engine.wakeUp.complete(Unit)
            }
        }

    private suspend fun ChatController.until(phase: Phase): ChatState = state.first { it.phase == phase }

    private suspend fun ChatController.loaded(settings: ChatSettings = ChatSettings()) {
        change(settings)
        load(request)
        until(Phase.READY)
        engine.calls.clear()
    }

    @Test
    fun `what the model had the phone do stands with its answer, and is kept`() = test { chat, _ ->
        chat.loaded(calling)
        engine.answers += Answer(listOf("It is ", "14"), toolCalls = listOf("""{"expression":"2*7"}""", """{"expression":"1/0"}"""))
        chat.send("How much is 2 * 7?")
        val state = chat.until(Phase.READY)
        val calls = listOf(
            ToolCall("calculate", """{"expression":"2*7"}""", "14"),
            ToolCall("calculate", """{"expression":"1/0"}""", "error: division by zero"),
        )
        assertEquals(calls, state.messages.last().calls)
        assertEquals("It is 14", state.messages.last().text)
        assertEquals(listOf("result 14", "result error: division by zero"), engine.calls.filter { it.startsWith("result") })
        val restored = chatFromJson(state.toJson())
        assertEquals(calls, restored.messages.last().calls)
        assertTrue(restored.settings.usesTools)
        assertEquals(calls, restored.history.last().calls)
    }

    @Test
    fun `no tool is offered where the settings say so`() = test { chat, _ ->
        chat.loaded()
        engine.answers += Answer(listOf("14"), toolCalls = listOf("{}"))
        chat.send("How much?")
        chat.until(Phase.FAILED) // the scripted engine calls its one tool, and has none
    }

    @Test
    fun `a benchmark has the engine for itself`() = test { chat, _ ->
        chat.loaded()
        val times = EngineTimes(1.0, 2.0, 3.0, 4.0)
        engine.measured += listOf(Result.success(times), Result.success(times))
        engine.measureGate = CompletableDeferred()
        val runs = mutableListOf<EngineTimes>()
        val end = CompletableDeferred<Throwable?>()
        chat.measure(MeasureRequest(request, 256, 64), { runs.size < 2 }, { runs += it }, end::complete)
        val state = chat.until(Phase.MEASURING)
        assertEquals(listOf(false, false, false), listOf(state.canLoad, state.canSend, state.canCancel))
        engine.measureGate.complete(Unit)
        assertNull(end.await())
        assertEquals(Phase.IDLE, chat.state.value.phase)
        assertEquals(listOf(times, times), runs)
        assertEquals(listOf("release", "measure m.litertlm 256 64", "measure m.litertlm 256 64"), engine.calls)
        chat.loaded()
    }

    @Test
    fun `a benchmark that fails, or never ends, is told`() = test(Patience(measureMs = 300)) { chat, _ ->
        engine.measured += Result.failure(IllegalStateException("no memory"))
        val failed = CompletableDeferred<Throwable?>()
        chat.measure(MeasureRequest(request, 8, 8), { true }, { fail("nothing was measured") }, failed::complete)
        assertEquals("no memory", failed.await()!!.message)
        engine.measureGate = engine.wakeUp
        val stuck = CompletableDeferred<Throwable?>()
        chat.measure(MeasureRequest(request, 8, 8), { true }, {}, stuck::complete)
        assertTrue("${stuck.await()}", stuck.await() is EngineStuck)
        chat.until(Phase.STUCK)
        engine.measured += Result.success(EngineTimes(1.0, 2.0, 3.0, 4.0))
        engine.wakeUp.complete(Unit)
        chat.until(Phase.IDLE)
        chat.loaded()
    }

    @Test
    fun `somebody else is answered, and the chat goes on where it was`() = test { chat, _ ->
        chat.loaded()
        engine.answers += listOf(Answer(listOf("Good day")), Answer(listOf("Two", " words")), Answer(listOf("Still here")))
        chat.send("Hello")
        chat.until(Phase.READY)
        val pieces = mutableListOf<String>()
        chat.answer(ChatSettings("Be brief."), emptyList(), ChatMessage(Role.USER, "Other")) { pieces += it }
        assertEquals(listOf("Two", " words"), pieces)
        assertEquals(listOf("Hello", "Good day"), chat.state.value.messages.map { it.text })
        chat.send("And now?")
        chat.until(Phase.READY)
        assertEquals(listOf("start [Be brief.] []", "send Other", "start [] [Hello, Good day]", "send And now?"), engine.calls.drop(2))
    }

    @Test
    fun `who is served goes away, and the model is free again`() = test { chat, scope ->
        chat.loaded()
        engine.answers += listOf(Answer(listOf("Long"), End.WAIT_FOR_CANCEL), Answer(listOf("Here")))
        val first = CompletableDeferred<String>()
        val served = scope.launch { chat.answer(ChatSettings(), emptyList(), ChatMessage(Role.USER, "Other"), first::complete) }
        first.await()
        assertEquals(Phase.SERVING, chat.state.value.phase)
        assertEquals("the model is busy", busy(chat))
        served.cancel()
        while (!chat.state.value.canSend) yield()
        chat.send("Hello")
        assertEquals("Here", chat.until(Phase.READY).messages.last().text)
        assertTrue("${engine.calls}", engine.calls.indexOf("stopped") < engine.calls.indexOf("send Hello"))
    }

    @Test
    fun `who is served is told when the model goes, fails or is not there`() = test { chat, scope ->
        assertEquals("no model is loaded", busy(chat))
        chat.loaded()
        engine.answers += listOf(Answer(emptyList(), End.FAIL), Answer(listOf("Long"), End.WAIT_FOR_CANCEL))
        val other = ChatMessage(Role.USER, "Other")
        val failure = runCatching { chat.answer(ChatSettings(), emptyList(), other) {} }.exceptionOrNull()
        assertEquals("the engine broke", failure!!.message!!.lines()[0])
        assertEquals(Phase.READY, chat.state.value.phase)
        val first = CompletableDeferred<String>()
        val end = CompletableDeferred<String?>()
        scope.launch {
            val outcome = runCatching { chat.answer(ChatSettings(), emptyList(), other, first::complete) }
            end.complete(outcome.exceptionOrNull()?.message)
        }
        first.await()
        chat.release(forMemory = true)
        assertEquals("the model was unloaded", end.await())
        assertEquals(Phase.IDLE, chat.state.value.phase)
    }

    private suspend fun busy(chat: ChatController): String? =
        try {
            chat.answer(ChatSettings(), emptyList(), ChatMessage(Role.USER, "Other")) {}
            null
        } catch (error: EngineBusy) {
            error.message
        }
}
