package org.gemmaedge.core.transfer

import java.io.ByteArrayInputStream
import java.io.IOException
import java.net.HttpURLConnection
import java.net.URL
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem

/**
 * A file on a web server, resumed by Range and If-Range (RFC 9110, sections 13.1.5 and 14).
 *
 * [url] is http or https; Android itself refuses http unless the app's network security configuration allows it.
 */
class HttpSource(private val url: URL, private val timeoutMs: Int = DEFAULT_TIMEOUT_MS) : ByteSource {
    override val name: String get() = url.path.substringAfterLast('/')

    override fun open(offset: Long, identity: String?): Opened {
        val connection = url.openConnection() as HttpURLConnection
        connection.connectTimeout = timeoutMs
        connection.readTimeout = timeoutMs
        connection.setRequestProperty("Accept-Encoding", "identity") // otherwise Android asks for gzip, and sizes are unknown
        if (offset > 0 && identity != null) {
            connection.setRequestProperty("Range", "bytes=$offset-")
            connection.setRequestProperty("If-Range", identity)
        }
        try {
            return opened(connection, offset, identity)
        } catch (error: Throwable) {
            connection.disconnect()
            throw error
        }
    }

    private fun opened(connection: HttpURLConnection, offset: Long, wanted: String?): Opened {
        // Only a strong ETag says that bytes are equal; a date is one where a second is enough to tell versions apart.
        val identity = connection.getHeaderField("ETag")?.takeUnless { it.startsWith("W/") } ?: connection.getHeaderField("Last-Modified")
        return when (val status = connection.responseCode) {
            HttpURLConnection.HTTP_OK -> Opened(connection.inputStream, 0, length(connection), identity)
            HttpURLConnection.HTTP_PARTIAL -> {
                if (wanted != null && identity != null && identity != wanted) { // a server without If-Range, of other bytes
                    connection.disconnect()
                    return open(0, null)
                }
                val range = CONTENT_RANGE.matchEntire(connection.getHeaderField("Content-Range").orEmpty())
                if (range == null || range.groupValues[1].toLong() != offset) {
                    throw refused("answered ${connection.getHeaderField("Content-Range")} to a request from byte $offset")
                }
                Opened(connection.inputStream, offset, range.groupValues[2].toLongOrNull(), identity)
            }
            RANGE_NOT_SATISFIABLE -> when {
                offset == 0L -> throw refused("status $status to a request without a range")
                // All of it had come: there is nothing from byte [offset] on.
                connection.getHeaderField("Content-Range") == "bytes */$offset" ->
                    Opened(ByteArrayInputStream(ByteArray(0)), offset, offset, identity)
                else -> open(0, null) // the file has become shorter
            }
            in TEMPORARY -> throw IOException("status $status")
            else -> throw refused("status $status, expected 200 or 206")
        }
    }

    private fun length(connection: HttpURLConnection): Long? = connection.getHeaderField("Content-Length")?.toLongOrNull()

    private fun refused(what: String) =
        DemoException(Problem.REFUSED_BY_SERVER, "${url.host}: $what; check the address $url")

    private companion object {
        const val DEFAULT_TIMEOUT_MS = 30_000
        const val RANGE_NOT_SATISFIABLE = 416
        val CONTENT_RANGE = Regex("""bytes (\d+)-\d+/(\d+|\*)""")
        val TEMPORARY = setOf(408, 425, 429, 500, 502, 503, 504)
    }
}
