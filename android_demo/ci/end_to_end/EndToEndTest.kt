package org.gemmaedge.endtoend

import java.io.File
import java.net.HttpURLConnection
import java.net.URL
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeout
import org.gemmaedge.core.bench.Bench
import org.gemmaedge.core.bench.BenchState
import org.gemmaedge.core.bench.Measurement
import org.gemmaedge.core.bundle.Bundle
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.chat.Accelerator
import org.gemmaedge.core.chat.Attachment
import org.gemmaedge.core.chat.Backends
import org.gemmaedge.core.chat.ChatController
import org.gemmaedge.core.chat.ChatSettings
import org.gemmaedge.core.chat.ChatState
import org.gemmaedge.core.chat.ChatStore
import org.gemmaedge.core.chat.Chats
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.chat.MeasureRequest
import org.gemmaedge.core.chat.Phase
import org.gemmaedge.core.chat.SamplerSettings
import org.gemmaedge.core.chat.ToolCall
import org.gemmaedge.core.chat.chatFromJson
import org.gemmaedge.core.chat.toJson
import org.gemmaedge.core.json.Json
import org.gemmaedge.core.memory.DeviceMemory
import org.gemmaedge.core.memory.Fit
import org.gemmaedge.core.memory.MemoryVerdict
import org.gemmaedge.core.serve.CompletionsApi
import org.gemmaedge.core.serve.LocalServer
import org.gemmaedge.core.tools.Calculator
import org.gemmaedge.core.transfer.ByteSource
import org.gemmaedge.core.transfer.Opened
import org.gemmaedge.core.transfer.Transfer
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/**
 * What a user does, with everything real but the screen: import a bundle of convert, check it, chat.
 *
 * Started by tests/android/test_end_to_end.py, which says in system properties where things lie, and in a JSON file what
 * gemma_edge.runtime answers to the same messages.
 */
class EndToEndTest {
    @get:Rule val folder = TemporaryFolder()

    private val expected = Json.parse(File(System.getProperty("gemma.expected")).readText())
    private val original = File(System.getProperty("gemma.bundle"))
    private val report = BundleReport.parse(File("${original.path}.json").readText())
    private val library = LiteRtLmLibrary.load(System.getProperty("gemma.library"))
    private val settings = ChatSettings(sampler = SamplerSettings(topK = 1), maxAnswerTokens = expected["max_answer_tokens"].int)

    private fun picked(file: File) = object : ByteSource {
        override val name = file.name

        override fun open(offset: Long, identity: String?): Opened {
            val current = "${file.length()} ${file.lastModified()}"
            val from = if (identity == current) offset else 0
            return Opened(file.inputStream().apply { channel.position(from) }, from, file.length(), current)
        }
    }

    private suspend fun import(): Bundle = Transfer(folder.root).run(picked(original), original.name, report).bundle

    private suspend fun ChatController.until(phase: Phase): ChatState = state.first {
        check(phase == Phase.FAILED || it.phase != Phase.FAILED) { "${it.notice}" }
        it.phase == phase
    }

    private suspend fun ChatController.ask(text: String): String {
        send(text)
        return until(Phase.READY).messages.last().text
    }

    private fun controller(scope: CoroutineScope, initial: ChatState, forced: ArrayDeque<String> = ArrayDeque()) =
        ChatController(NativeChatEngine(library, forced), scope, initial = initial, tools = listOf(Calculator()))

    @Test
    fun `the phone says what Python says`() = runBlocking {
        withTimeout(120_000) {
            val bundle = import()
            val device = DeviceMemory(4L shl 30, 256L shl 20, 8L shl 30, null, isLow = false)
            assertEquals(Fit.FITS, MemoryVerdict.of(report.footprint, device).fit)
            val request = LoadRequest(bundle.file.path, cacheDir = folder.newFolder("cache").path)

            val saved = firstProcess(request)
            secondProcess(request, saved)
        }
    }

    /** Chats, is stopped, starts anew; returns the chat as it was after the first answer. */
    private suspend fun firstProcess(request: LoadRequest): String = coroutineScope {
        val chat = controller(this, ChatState(settings = settings))
        chat.load(request)
        chat.until(Phase.READY)
        assertEquals(expected["first"]["answer"].text, chat.ask(expected["first"]["message"].text))
        assertTrue(chat.state.value.messages.last().stats!!.tokens in 2..settings.maxAnswerTokens!!)
        val saved = chat.state.value.toJson()

        chat.newConversation()
        chat.send(expected["first"]["message"].text)
        chat.state.first { it.messages.last().text.isNotEmpty() }
        if (chat.state.value.canCancel) chat.cancel()
        chat.state.first { it.canSend }
        chat.newConversation()
        assertEquals("as though nothing had been", expected["first"]["answer"].text, chat.ask(expected["first"]["message"].text))
        chat.release(forMemory = true)
        saved
    }

    /** Finds the chat of another, and goes on with it. */
    private suspend fun secondProcess(request: LoadRequest, saved: String) = coroutineScope {
        val chat = controller(this, chatFromJson(saved))
        chat.load(request)
        chat.until(Phase.READY)
        assertEquals(expected["second"]["answer"].text, chat.ask(expected["second"]["message"].text))
        assertEquals(4, chat.state.value.messages.size)
        chat.release(forMemory = false)
    }

    @Test
    fun `an image, a tool, and another chat in between`() = runBlocking {
        withTimeout(120_000) {
            val seen = expected["seen"]
            val limits = settings.copy(maxAnswerTokens = seen["max_answer_tokens"].int, usesTools = true)
            val chat = controller(this, ChatState(), ArrayDeque(listOf(seen["forced"].text)))
            val chats = Chats(ChatStore(folder.newFolder("chats")), chat)
            val keeping = launch { chats.restoreAndKeep() }
            chats.untilRestored()
            chat.change(limits)
            chat.load(LoadRequest(import().file.path, Backends(vision = Accelerator.CPU), folder.newFolder("cache").path))
            chat.until(Phase.READY)

            chat.send(seen["message"].text, listOf(Attachment(Attachment.Kind.IMAGE, seen["image"].text)))
            val answer = chat.until(Phase.READY).messages.last()
            assertEquals(listOf(ToolCall("calculate", seen["arguments"].text, seen["result"].text)), answer.calls)
            assertEquals(seen["answer"].text, answer.text)

            val first = chat.state.value.id
            chats.begin()
            val other = expected["other"]
            assertEquals("the image and the call are forgotten", other["answer"].text, chat.ask(other["message"].text))
            chats.open(first)
            assertEquals(2, chat.state.value.messages.size)
            chat.send(expected["after"]["message"].text)
            chat.state.first { it.messages.last().text.isNotEmpty() }
            if (chat.state.value.canCancel) chat.cancel()
            chat.state.first { it.canSend }
            chat.regenerate()
            assertEquals("they are read again", expected["after"]["answer"].text, chat.until(Phase.READY).messages.last().text)
            chat.release(forMemory = false)
            keeping.cancel()
        }
    }

    @Test
    fun `a program on the phone is answered the same`() = runBlocking {
        withTimeout(120_000) {
            val chat = controller(this, ChatState())
            chat.load(LoadRequest(import().file.path, cacheDir = folder.newFolder("cache").path))
            chat.until(Phase.READY)
            LocalServer.start(0, CompletionsApi(chat, this) { "tiny" }).use { server ->
                val asked = Json.write(
                    mapOf(
                        "messages" to listOf(mapOf("role" to "user", "content" to expected["first"]["message"].text)),
                        "max_tokens" to settings.maxAnswerTokens,
                        "top_k" to 1,
                    ),
                )
                val reply = withContext(Dispatchers.IO) {
                    val connection = URL("${server.address}/chat/completions").openConnection() as HttpURLConnection
                    connection.setRequestProperty("Authorization", "Bearer ${server.key}")
                    connection.doOutput = true
                    connection.outputStream.use { it.write(asked.toByteArray()) }
                    Json.parse(connection.inputStream.use { it.reader().readText() })
                }
                assertEquals(expected["first"]["answer"].text, reply["choices"].items[0]["message"]["content"].text)
            }
            chat.release(forMemory = false)
        }
    }

    @Test
    fun `a benchmark`() = runBlocking {
        withTimeout(120_000) {
            val bench = Bench(controller(this, ChatState()), this)
            val load = LoadRequest(import().file.path, cacheDir = folder.newFolder("cache").path)
            bench.start("tiny", MeasureRequest(load, prefillTokens = 32, decodeTokens = 8), runs = 2)
            val done = bench.state.first { it !is BenchState.Running }
            val json = Measurement.toJson((done as BenchState.Done).runs)
            File(System.getProperty("gemma.expected")).resolveSibling("bench.json").writeText(json)
        }
    }

    @Test
    fun `what LiteRT-LM refuses is told`() = runBlocking {
        withTimeout(120_000) {
            val chat = controller(this, ChatState())
            chat.load(LoadRequest(File(folder.root, "none.litertlm").path))
            val failed = chat.until(Phase.FAILED)
            assertTrue("${failed.notice}", failed.notice!!.detail.startsWith("LiteRT-LM gave no engine"))
        }
    }
}
