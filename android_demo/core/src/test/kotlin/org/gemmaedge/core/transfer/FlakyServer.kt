package org.gemmaedge.core.transfer

import java.io.BufferedReader
import java.io.Closeable
import java.net.InetAddress
import java.net.ServerSocket
import java.net.Socket
import java.net.URL
import java.util.concurrent.ConcurrentLinkedQueue
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.CountDownLatch
import kotlin.concurrent.thread

/** What the server does with one request; requests beyond the list are served whole. */
sealed interface Behaviour {
    /** Serve what is asked for. */
    data object Serve : Behaviour

    /** Close the connection after so many bytes of the body. */
    data class Drop(val afterBytes: Int) : Behaviour

    /** Send so many bytes of the body, and then nothing, with the connection open until the server is closed. */
    data class Stall(val afterBytes: Int) : Behaviour

    /** Answer with this status and no body. */
    data class Status(val code: Int) : Behaviour

    /** As though Range were unknown. */
    data object IgnoreRange : Behaviour

    /** As though If-Range were unknown. */
    data object IgnoreIfRange : Behaviour

    /** Answer 206 from a byte that was not asked for. */
    data object WrongRange : Behaviour
}

/** A web server on the loopback interface that loses connections as told. HTTP/1.1, one request a connection. */
class FlakyServer(@Volatile var content: ByteArray, vararg behaviours: Behaviour) : Closeable {
    private val socket = ServerSocket(0, 50, InetAddress.getLoopbackAddress())
    private val queue = ConcurrentLinkedQueue(behaviours.toList())

    @Volatile var etag: String? = "\"1\""

    /** The Range header of each request, "" where it had none. */
    val ranges = CopyOnWriteArrayList<String>()

    val url = URL("http://127.0.0.1:${socket.localPort}/models/tiny.litertlm")

    init {
        thread(isDaemon = true) {
            while (!socket.isClosed) {
                val connection = try {
                    socket.accept()
                } catch (_: java.io.IOException) {
                    break
                }
                thread(isDaemon = true) { runCatching { connection.use(::answer) } }
            }
        }
    }

    private val stalled = CountDownLatch(1)

    override fun close() {
        stalled.countDown()
        socket.close()
    }

    private fun answer(connection: Socket) {
        val headers = readHeaders(connection.getInputStream().bufferedReader(Charsets.ISO_8859_1))
        val range = headers["range"].orEmpty()
        ranges += range
        val behaviour = queue.poll() ?: Behaviour.Serve
        val isSame = behaviour == Behaviour.IgnoreIfRange || headers["if-range"].let { it == null || it == etag }
        var begin = if (isSame) range.removePrefix("bytes=").substringBefore('-').toIntOrNull() ?: 0 else 0
        if (behaviour == Behaviour.IgnoreRange) begin = 0
        if (behaviour == Behaviour.WrongRange) begin += 1
        val body = content.copyOfRange(minOf(begin, content.size), content.size)
        val lines = mutableListOf<String>()
        when {
            behaviour is Behaviour.Status -> lines += listOf("HTTP/1.1 ${behaviour.code} As Told", "Content-Length: 0")
            begin >= content.size -> lines += listOf(
                "HTTP/1.1 416 No Such Range",
                "Content-Range: bytes */${content.size}",
                "Content-Length: 0",
            )
            begin > 0 -> lines += listOf(
                "HTTP/1.1 206 Partial Content",
                "Content-Range: bytes $begin-${content.size - 1}/${content.size}",
                "Content-Length: ${body.size}",
            )
            else -> lines += listOf("HTTP/1.1 200 OK", "Content-Length: ${body.size}")
        }
        etag?.let { lines += "ETag: $it" }
        val out = connection.getOutputStream()
        out.write((lines + "Connection: close").joinToString("\r\n", postfix = "\r\n\r\n").toByteArray())
        when (behaviour) {
            is Behaviour.Status -> Unit
            is Behaviour.Stall -> {
                out.write(body, 0, minOf(behaviour.afterBytes, body.size))
                out.flush()
                stalled.await()
            }
            is Behaviour.Drop -> out.write(body, 0, minOf(behaviour.afterBytes, body.size))
            else -> out.write(body)
        }
        out.flush()
    }

    private fun readHeaders(input: BufferedReader): Map<String, String> =
        generateSequence(input::readLine).takeWhile { it.isNotEmpty() }.drop(1)
            .associate { it.substringBefore(':').lowercase() to it.substringAfter(':').trim() }
}
