package org.gemmaedge.core.serve

import java.io.IOException
import java.io.InputStream

/** What a client asks. Names of [headers] in lower case. */
class HttpRequest(val method: String, val path: String, val headers: Map<String, String>, val body: String)

/** What is wrong with a request, to tell the client. [code] as OpenAI's own service has it. */
class HttpProblem(val status: Int, val code: String, override val message: String) : Exception(message)

/** Reads one request of HTTP/1.1 (RFC 9112), within limits. Throws [HttpProblem] and IOException. */
internal fun readRequest(input: InputStream): HttpRequest {
    val lines = generateSequence { readLine(input).takeIf { it.isNotEmpty() } }.take(MOST_LINES + 1).toList()
    if (lines.size > MOST_LINES) throw HttpProblem(431, "headers_too_long", "more than $MOST_LINES header lines")
    val parts = lines.firstOrNull().orEmpty().split(' ')
    if (parts.size != 3 || !parts[2].startsWith("HTTP/1.")) throw HttpProblem(400, "bad_request", "this is not a request of HTTP/1.1")
    val headers = lines.drop(1).associate { line ->
        val (name, value) = line.split(':', limit = 2).takeIf { it.size == 2 }
            ?: throw HttpProblem(400, "bad_request", "a header without a colon")
        name.lowercase() to value.trim()
    }
    if ("transfer-encoding" in headers) throw HttpProblem(411, "length_required", "send the body in one piece, with Content-Length")
    val length = headers["content-length"] ?: "0"
    val size = length.toIntOrNull()?.takeIf { it >= 0 } ?: throw HttpProblem(400, "bad_request", "Content-Length is \"${length.take(20)}\"")
    if (size > LONGEST_BODY_BYTES) throw HttpProblem(413, "body_too_long", "the body has $size bytes, expected at most $LONGEST_BODY_BYTES")
    return HttpRequest(parts[0], parts[1].substringBefore('?'), headers, String(readExactly(input, size), Charsets.UTF_8))
}

private fun readLine(input: InputStream): String {
    val line = StringBuilder()
    while (true) {
        when (val byte = input.read()) {
            -1 -> throw IOException("the client went away")
            '\n'.code -> return line.toString().removeSuffix("\r")
            else -> line.append(byte.toChar())
        }
        if (line.length > LONGEST_LINE_BYTES) throw HttpProblem(431, "headers_too_long", "a header of more than $LONGEST_LINE_BYTES bytes")
    }
}

private fun readExactly(input: InputStream, size: Int): ByteArray {
    val bytes = ByteArray(size)
    var at = 0
    while (at < size) {
        val count = input.read(bytes, at, size - at)
        if (count < 0) throw IOException("the client went away")
        at += count
    }
    return bytes
}

private const val LONGEST_LINE_BYTES = 8 shl 10
private const val MOST_LINES = 100
private const val LONGEST_BODY_BYTES = 1 shl 20
