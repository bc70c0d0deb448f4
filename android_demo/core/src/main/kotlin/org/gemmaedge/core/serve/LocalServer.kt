package org.gemmaedge.core.serve

import java.io.IOException
import java.io.OutputStream
import java.net.InetAddress
import java.net.ServerSocket
import java.net.Socket
import java.net.SocketException
import java.security.MessageDigest
import java.security.SecureRandom
import java.util.concurrent.Semaphore
import kotlin.concurrent.thread
import org.gemmaedge.core.json.Json

/** Gives the answer to a request that was let in. Blocks; throws [HttpProblem] before the first byte. */
fun interface Handler {
    fun handle(request: HttpRequest, reply: Reply)
}

/** Writes one response: [json] at once, or [stream] followed by [event]s. */
class Reply internal constructor(private val output: OutputStream) {
    var hasBegun = false
        private set

    fun json(status: Int, text: String) {
        val body = text.toByteArray()
        head(status, "application/json", "Content-Length: ${body.size}\r\n")
        output.write(body)
        output.flush()
    }

    /** Server-sent events, up to the end of the connection. */
    fun stream() = head(200, "text/event-stream", "Cache-Control: no-store\r\n")

    /** Throws IOException where the client has gone. */
    fun event(data: String) {
        output.write("data: $data\n\n".toByteArray())
        output.flush()
    }

    private fun head(status: Int, type: String, more: String) {
        hasBegun = true
        val line = "HTTP/1.1 $status ${REASONS[status] ?: "Error"}"
        output.write("$line\r\nContent-Type: $type\r\n${more}Connection: close\r\n\r\n".toByteArray())
    }

    private companion object {
        val REASONS = mapOf(
            200 to "OK", 400 to "Bad Request", 401 to "Unauthorized", 403 to "Forbidden", 404 to "Not Found", 503 to "Service Unavailable",
        )
    }
}

/**
 * An HTTP server for programs on this device: on the loopback address only, and only for who knows [key].
 *
 * A page in a browser cannot use it: requests with an Origin, or for another Host, are refused. A connection carries one
 * request. It is made by [start], and gone after [close].
 */
class LocalServer private constructor(private val socket: ServerSocket, val key: String, private val handler: Handler) : AutoCloseable {
    private val places = Semaphore(MOST_CONNECTIONS)
    private val open = mutableSetOf<Socket>()
    private var isClosed = false // guarded by open

    val port: Int get() = socket.localPort
    val address: String get() = "http://127.0.0.1:$port/v1"

    /** Whoever is being answered is cut off. */
    override fun close() {
        socket.close()
        synchronized(open) {
            isClosed = true
            open.toList()
        }.forEach { it.close() }
    }

    private fun accept() {
        while (true) {
            val client = try {
                socket.accept()
            } catch (_: SocketException) { // closed
                return
            }
            if (!places.tryAcquire()) {
                client.close()
                continue
            }
            // accept may still give a client that came while close was under way.
            if (!synchronized(open) { !isClosed && open.add(client) }) {
                client.close()
                return
            }
            thread(isDaemon = true, name = "local server") {
                try {
                    client.use(::serve)
                } catch (_: IOException) {
                    // The client went away.
                } finally {
                    synchronized(open) { open -= client }
                    places.release()
                }
            }
        }
    }

    private fun serve(client: Socket) {
        client.soTimeout = READ_TIMEOUT_MS
        val reply = Reply(client.getOutputStream())
        try {
            val request = readRequest(client.getInputStream().buffered())
            check(request)
            handler.handle(request, reply)
        } catch (problem: HttpProblem) {
            if (!reply.hasBegun) reply.json(problem.status, problemJson(problem))
            drain(client)
        }
    }

    /** What is still under way: a socket closed over unread bytes is reset, and the client may never see the reply. */
    private fun drain(client: Socket) {
        client.shutdownOutput()
        val input = client.getInputStream()
        var left = MOST_DRAINED_BYTES
        val waste = ByteArray(8 shl 10)
        while (left > 0) left -= input.read(waste).also { if (it < 0) return }
    }

    private fun check(request: HttpRequest) {
        val host = request.headers["host"].orEmpty().substringBeforeLast(':')
        if (host !in HOSTS || "origin" in request.headers) throw HttpProblem(403, "forbidden", "only programs on this device are answered")
        val shown = request.headers["authorization"].orEmpty().removePrefix("Bearer ")
        // In the same time whatever is wrong with it.
        if (!MessageDigest.isEqual(shown.toByteArray(), key.toByteArray())) {
            throw HttpProblem(401, "invalid_api_key", "the key is missing or wrong; send Authorization: Bearer KEY, as the app shows it")
        }
    }

    companion object {
        private const val MOST_CONNECTIONS = 4
        private const val READ_TIMEOUT_MS = 10_000
        private const val KEY_BYTES = 24
        private const val MOST_DRAINED_BYTES = 2 shl 20
        private val HOSTS = setOf("127.0.0.1", "localhost")

        /** Throws IOException where the port is taken. [port] 0: any. */
        fun start(port: Int, handler: Handler): LocalServer {
            val loopback = InetAddress.getByAddress(byteArrayOf(127, 0, 0, 1))
            return LocalServer(ServerSocket(port, MOST_CONNECTIONS, loopback), newKey(), handler).apply {
                thread(isDaemon = true, name = "local server") { accept() }
            }
        }

        private fun newKey(): String = ByteArray(KEY_BYTES).also(SecureRandom()::nextBytes).joinToString("") { "%02x".format(it) }

        internal fun problemJson(problem: HttpProblem): String = Json.write(
            mapOf("error" to mapOf("message" to problem.message, "type" to "invalid_request_error", "code" to problem.code)),
        )
    }
}
