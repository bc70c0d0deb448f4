package org.gemmaedge.core.serve

import java.net.HttpURLConnection
import java.net.InetAddress
import java.net.ServerSocket
import java.net.Socket
import java.net.URL
import java.util.concurrent.Executors
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeout
import org.gemmaedge.core.chat.ChatController
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.chat.Phase
import org.gemmaedge.core.chat.ScriptedEngine
import org.gemmaedge.core.chat.ScriptedEngine.Answer
import org.gemmaedge.core.chat.ScriptedEngine.End
import org.gemmaedge.core.json.Json
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class LocalServerTest {
    private val thread = Executors.newSingleThreadExecutor()
    private val main = thread.asCoroutineDispatcher()
    private val scope = CoroutineScope(main)
    private val engine = ScriptedEngine()
    private val chat = ChatController(engine, scope)
    private val api = CompletionsApi(chat, scope, { 7 }) { chat.state.value.loaded?.bundlePath }
    private val server = LocalServer.start(0, api)
    private val hello = """{"messages":[{"role":"user","content":"Hello"}]}"""

    @After
    fun close() {
        server.close()
        scope.cancel()
        thread.shutdown()
    }

    private fun load() = runBlocking {
        withTimeout(10_000) {
            withContext(main) { chat.load(LoadRequest("m")) }
            chat.state.first { it.phase == Phase.READY }
        }
    }

    private class Response(val status: Int, val body: String)

    private fun ask(path: String, body: String? = null, key: String? = server.key): Response {
        val connection = URL("${server.address.removeSuffix("/v1")}$path").openConnection() as HttpURLConnection
        key?.let { connection.setRequestProperty("Authorization", "Bearer $it") }
        if (body != null) {
            connection.doOutput = true
            connection.outputStream.use { it.write(body.toByteArray()) }
        }
        val status = connection.responseCode
        val stream = if (status < 400) connection.inputStream else connection.errorStream
        return Response(status, stream.use { it.reader().readText() })
    }

    private fun complete(body: String) = ask("/v1/chat/completions", body)

    private fun problem(response: Response): String {
        val error = Json.parse(response.body)["error"]
        return "${response.status} ${error["code"].text}: ${error["message"].text}"
    }

    /** The status line that raw bytes get. */
    private fun raw(text: String, port: Int = server.port): String = Socket("127.0.0.1", port).use { socket ->
        socket.soTimeout = 10_000
        socket.getOutputStream().apply { write(text.toByteArray()) }.flush()
        socket.getInputStream().bufferedReader().readLine().orEmpty()
    }

    private fun head(vararg headers: String, line: String = "GET /v1/models HTTP/1.1") =
        (listOf(line) + headers).joinToString("\r\n") + "\r\n\r\n"

    @Test
    fun `a question is answered whole`() {
        load()
        engine.answers += Answer(listOf("Good ", "day"))
        val asked = """{"model":"m","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"A"},
            {"role":"assistant","content":"B"},{"role":"user","content":[{"type":"text","text":"C"}]}],
            "temperature":0,"top_p":0.5,"top_k":3,"seed":9,"max_tokens":5,"n":1,"user":"me","stop":null}"""
        val response = complete(asked)
        val choice = """{"index":0,"message":{"role":"assistant","content":"Good day"},"finish_reason":"stop"}"""
        assertEquals("""{"id":"chatcmpl-0","object":"chat.completion","created":7,"model":"m","choices":[$choice]}""", response.body)
        assertEquals(listOf("start [Be brief.] [A, B]", "send C"), engine.calls.takeLast(2))
        val model = """{"id":"m","object":"model","created":0,"owned_by":"gemma-edge"}"""
        assertEquals("""{"object":"list","data":[$model]}""", ask("/v1/models").body)
    }

    @Test
    fun `a question is answered piece by piece`() {
        load()
        engine.answers += listOf(Answer(listOf("Good ", "day")), Answer(listOf("Half"), End.FAIL), Answer(emptyList()))
        fun said(body: String) = complete(body).body.split("\n\n").filter { it.isNotEmpty() }.map { it.removePrefix("data: ") }
        val streamed = hello.replace("}]}", "}],\"stream\":true}")
        val events = said(streamed)
        assertEquals(listOf("Good ", "day"), events.take(2).map { Json.parse(it)["choices"].items[0]["delta"]["content"].text })
        assertEquals("stop", Json.parse(events[2])["choices"].items[0]["finish_reason"].text)
        assertEquals(listOf("[DONE]"), events.drop(3))
        assertEquals("the model failed: the engine broke", Json.parse(said(streamed).last())["error"]["message"].text)
        assertEquals("[DONE]", said(streamed).last())
    }

    @Test
    fun `only who knows the key, and no browser`() {
        assertTrue(problem(ask("/v1/models", key = null)).startsWith("401 invalid_api_key: the key is missing or wrong"))
        assertEquals(401, ask("/v1/models", key = server.key.dropLast(1) + "x").status)
        assertTrue(server.key.length == 48 && LocalServer.start(0, api).use { it.key } != server.key)
        val authorization = "Authorization: Bearer ${server.key}"
        assertEquals("HTTP/1.1 200 OK", raw(head("Host: localhost:1", authorization)))
        assertEquals("HTTP/1.1 403 Forbidden", raw(head("Host: localhost:1", authorization, "Origin: https://example.org")))
        assertEquals("HTTP/1.1 403 Forbidden", raw(head("Host: rebound.example.org", authorization)))
        assertEquals("HTTP/1.1 403 Forbidden", raw(head(authorization)))
    }

    @Test
    fun `requests beyond the limits are refused`() {
        val post = "POST /v1/chat/completions HTTP/1.1"
        assertTrue(raw(head("Host: localhost:1", "Content-Length: 2000000", line = post)).startsWith("HTTP/1.1 413"))
        assertTrue(raw(head("Host: localhost:1", "Transfer-Encoding: chunked", line = post)).startsWith("HTTP/1.1 411"))
        assertTrue(raw(head("Host: localhost:1", "Content-Length: -1", line = post)).startsWith("HTTP/1.1 400"))
        assertTrue(raw(head("no colon")).startsWith("HTTP/1.1 400"))
        assertTrue(raw("hello\r\n\r\n").startsWith("HTTP/1.1 400"))
        assertTrue(raw(head("X: ${"a".repeat(9000)}")).startsWith("HTTP/1.1 431"))
        assertTrue(raw(head(*Array(120) { "H$it: x" })).startsWith("HTTP/1.1 431"))
    }

    @Test
    fun `what is not understood is refused by name`() {
        assertEquals("404 not_found: there are GET /v1/models and POST /v1/chat/completions", problem(ask("/v1/embeddings", "{}")))
        assertEquals("503 no_model: no model is loaded; load one in the app", problem(complete(hello)))
        load()
        val cases = mapOf(
            "{" to "400 invalid_request: character 1: found the end, expected a quote",
            "{}" to "400 invalid_request: messages: found nothing, expected a list",
            """{"messages":[]}""" to "400 invalid_request: messages: found none of a user, expected one",
            """{"messages":[{"role":"user","content":"A"}],"tools":[]}""" to "400 unsupported: tools is not supported; leave it out",
            """{"messages":[{"role":"user","content":"A"}],"n":2}""" to "400 unsupported: n is 2, expected 1",
            """{"messages":[{"role":"user","content":"A"}],"top_p":2}""" to "400 invalid_request: topP is 2.0, expected 0 to 1",
            """{"messages":[{"role":"tool","content":"A"}]}""" to "400 unsupported: a message of role tool is not supported here",
            """{"messages":[{"role":"assistant","content":"A"}]}""" to
                "400 invalid_request: messages: expected user and assistant in turn, a user first and last",
            """{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}""" to
                "400 unsupported: a content of type image_url is not supported",
        )
        assertEquals(cases, cases.mapValues { problem(complete(it.key)) })
        engine.answers += Answer(emptyList(), End.FAIL)
        assertEquals("500 engine_failed: the model failed: the engine broke", problem(complete(hello)))
    }

    @Test
    fun `who goes away frees the model for the next`() {
        load()
        engine.answers += listOf(Answer(listOf("Long"), End.WAIT_FOR_CANCEL), Answer(listOf("Next")))
        Socket(InetAddress.getByAddress(byteArrayOf(127, 0, 0, 1)), server.port).use { socket ->
            val body = hello.replace("}]}", "}],\"stream\":true}")
            val head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:1\r\nAuthorization: Bearer ${server.key}\r\n"
            socket.getOutputStream().write("${head}Content-Length: ${body.length}\r\n\r\n$body".toByteArray())
            assertEquals("HTTP/1.1 200 OK", socket.getInputStream().bufferedReader().readLine())
            assertEquals("503 busy: the model is busy; try again later", problem(complete(hello)))
        }
        server.close()
        runBlocking { withTimeout(10_000) { withContext(main) { chat.release(forMemory = false) } } }
    }

    @Test
    fun `the switch`() {
        ServerSocket(0, 1, InetAddress.getByAddress(byteArrayOf(127, 0, 0, 1))).use { taken ->
            val switch = ServerSwitch(taken.localPort, api)
            switch.on()
            assertEquals(taken.localPort, (switch.state.value as ServerState.Failed).port)
        }
        val switch = ServerSwitch(0, api)
        assertEquals(ServerState.Off, switch.state.value)
        switch.on()
        val on = switch.state.value as ServerState.On
        switch.on()
        assertEquals(on, switch.state.value)
        switch.off()
        assertEquals(ServerState.Off, switch.state.value)
        val port = on.address.substringAfterLast(':').removeSuffix("/v1").toInt()
        // Another program of this machine may have taken the port by now, and may even answer.
        val answer = runCatching { raw(head("Host: localhost:1", "Authorization: Bearer ${on.key}"), port) }
        assertTrue(answer.getOrDefault("nothing") != "HTTP/1.1 200 OK")
        switch.on()
        assertTrue((switch.state.value as ServerState.On).key != on.key)
        switch.off()
    }

    @Test
    fun `who comes while it closes is not answered after that`() {
        repeat(300) {
            val server = LocalServer.start(0, api)
            val head = head("Host: localhost:1", "Authorization: Bearer ${server.key}")
            Socket(InetAddress.getByAddress(byteArrayOf(127, 0, 0, 1)), server.port).use { client ->
                server.close()
                val answer = runCatching {
                    client.getOutputStream().write(head.toByteArray())
                    client.getInputStream().bufferedReader().readLine()
                }
                assertTrue("200" !in answer.getOrNull().orEmpty())
            }
        }
    }
}
