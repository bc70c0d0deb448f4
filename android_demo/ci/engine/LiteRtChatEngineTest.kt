package org.gemmaedge.engine

import com.google.ai.edge.litertlm.Answer
import com.google.ai.edge.litertlm.Script
import java.util.concurrent.CountDownLatch
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.gemmaedge.core.chat.Accelerator
import org.gemmaedge.core.chat.Attachment
import org.gemmaedge.core.chat.Backends
import org.gemmaedge.core.chat.ChatMessage
import org.gemmaedge.core.chat.ChatSettings
import org.gemmaedge.core.chat.EngineTimes
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.chat.SamplerSettings
import org.gemmaedge.core.chat.Tool
import org.gemmaedge.core.chat.ToolCall
import org.gemmaedge.core.json.Json
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Before
import org.junit.Test

class LiteRtChatEngineTest {
    private val engine = LiteRtChatEngine()
    private val hello = ChatMessage(Role.USER, "Hello")

    @Before
    fun forget() = Script.reset()

    private fun test(action: suspend CoroutineScope.() -> Unit) = runBlocking { withTimeout(60_000) { action() } }

    private suspend fun ready(vararg answers: Answer) {
        engine.load(LoadRequest("m.litertlm"))
        engine.startConversation(ChatSettings(), emptyList(), emptyList())
        Script.answers.addAll(answers)
        Script.calls.clear()
    }

    private suspend fun failure(action: suspend () -> Unit): String? {
        try {
            action()
        } catch (error: IllegalStateException) {
            return error.message
        }
        fail("nothing was thrown")
        return null
    }

    @Test
    fun `answers come piece by piece, and everything is closed once`() = test {
        ready(Answer(listOf("Good ", "day")), Answer(listOf("Again")))
        assertEquals(listOf("Good ", "day"), engine.send(hello).toList())
        assertEquals(listOf("Again"), engine.send(hello).toList())
        engine.release()
        engine.release()
        assertEquals(listOf("send Hello", "send Hello", "close conversation", "close engine"), Script.calls)
    }

    @Test
    fun `cancelling waits until the native code has stopped`() = test {
        val mayEnd = CountDownLatch(1)
        ready(Answer(listOf("Once"), isEndless = true, mayEnd = mayEnd))
        val first = CompletableDeferred<String>()
        val listening = launch(Dispatchers.Default) { engine.send(hello).collect(first::complete) }
        assertEquals("Once", first.await())
        val ending = launch(Dispatchers.Default) { listening.cancelAndJoin() }
        while ("cancel" !in Script.calls) yield()
        assertFalse("native code is still at work", listening.isCompleted)
        mayEnd.countDown()
        ending.join()
        engine.startConversation(ChatSettings(), emptyList(), emptyList())
        assertEquals(listOf("send Hello", "cancel", "ended", "close conversation"), Script.calls.take(4))
    }

    @Test
    fun `an answer that fills the context ends, one that never began fails`() = test {
        val full = IllegalStateException("Status Code: 8. Message: Max number of tokens reached.")
        ready(Answer(listOf("Long"), full), Answer(emptyList(), full), Answer(listOf("Long"), IllegalStateException("lost")))
        assertEquals(listOf("Long"), engine.send(hello).toList())
        assertEquals(full.message, failure { engine.send(hello).toList() })
        assertEquals("lost", failure { engine.send(hello).toList() })
    }

    @Test
    fun `a load passes on where each part runs`() = test {
        val backends = Backends(Accelerator.CPU, vision = Accelerator.GPU, audio = Accelerator.CPU)
        engine.load(LoadRequest("m.litertlm", backends, cacheDir = "cache"))
        assertEquals(listOf("load m.litertlm [CPU, GPU, CPU] cache"), Script.calls)
    }

    @Test
    fun `on a GPU a load shows whether it can compute`() = test {
        val onGpu = LoadRequest("m.litertlm", Backends(Accelerator.GPU))
        engine.load(onGpu)
        assertTrue(Script.calls.toString(), Script.calls[1].contains("max=1"))
        assertEquals(listOf("ask Hello", "close conversation"), Script.calls.drop(2))
        engine.release()
        Script.firstReplyError = IllegalStateException("Can not find OpenCL library on this device")
        assertEquals("Can not find OpenCL library on this device", failure { engine.load(onGpu) })
        engine.release()
        assertEquals("close engine", Script.calls.last())
    }

    @Test
    fun `an engine that failed to load is not closed`() = test {
        Script.loadError = IllegalStateException("no such model")
        assertEquals("no such model", failure { engine.load(LoadRequest("m.litertlm")) })
        engine.release()
        assertEquals(1, Script.calls.size)
    }

    @Test
    fun `a conversation begins with settings and history`() = test {
        ready()
        val seen = ChatMessage(
            Role.USER,
            "What is this?",
            listOf(Attachment(Attachment.Kind.AUDIO, "a.wav"), Attachment(Attachment.Kind.IMAGE, "i.jpg")),
        )
        val settings = ChatSettings("Be brief.", SamplerSettings(1, 0.5, 0.0, 7), maxAnswerTokens = 20)
        engine.startConversation(settings, listOf(seen, ChatMessage(Role.MODEL, "A cat.")), emptyList())
        val history = "[user:AudioFile(absolutePath=a.wav)ImageFile(absolutePath=i.jpg)What is this?, model:[]A cat.]"
        val sampler = "SamplerConfig(topK=1, topP=0.5, temperature=0.0, seed=7)"
        val started = "start system=Be brief. $history $sampler max=20 prefill=true tools=[] drafts=null"
        assertEquals(listOf("close conversation", started), Script.calls)
    }

    @Test
    fun `a model calls tools, and reads what it called before`() = test {
        val twice = object : Tool {
            override val name = "twice"
            override val description = """{"name":"twice"}"""

            override fun run(arguments: Json) = "${2 * arguments["n"].int}"
        }
        engine.load(LoadRequest("m.litertlm", drafts = true))
        val answer = ChatMessage(Role.MODEL, "It is 4.", calls = listOf(ToolCall("twice", """{"n":2}""", "4")))
        engine.startConversation(ChatSettings(), listOf(hello, answer), listOf(twice))
        val started = Script.calls.last()
        val called = "model:[ToolCall(name=twice, arguments={n=2})], tool:ToolResponse(name=twice, response=4), model:[]It is 4."
        assertTrue(started, started.contains("[user:Hello, $called]"))
        assertTrue(started, started.endsWith("""tools=[{"name":"twice"}] drafts=true"""))
        Script.answers += Answer(listOf("6"), calls = listOf(0 to """{"n":3}""", 0 to "{}"))
        assertEquals(listOf("6"), engine.send(hello).toList())
        assertEquals(listOf("result 6", "result error: n: found nothing, expected an integer"), Script.calls.takeLast(2))
    }

    @Test
    fun `it measures itself`() = test {
        val times = engine.measure(LoadRequest("m.litertlm", cacheDir = "cache"), 256, 64)
        assertEquals(EngineTimes(1.0, 2.0, 3.0, 4.0), times)
        assertEquals(listOf("benchmark m.litertlm CPU 256 64 cache"), Script.calls)
    }

    @Test
    fun `nothing is sent before a conversation was started`() = test {
        assertEquals("no model is loaded", failure { engine.startConversation(ChatSettings(), emptyList(), emptyList()) })
        engine.load(LoadRequest("m.litertlm"))
        assertEquals("no conversation was started", failure { engine.send(hello).toList() })
    }
}
