package org.gemmaedge.core.store

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.net.URL
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.transfer.ByteSource
import org.gemmaedge.core.transfer.HttpSource

/** A text beside a bundle, under the bundle's name with [suffix] added. */
internal enum class Sidecar(val suffix: String, private val tooLong: Problem, private val whatToDo: String) {
    REPORT(".json", Problem.NOT_A_REPORT, "longer than any report; choose the .json file that convert wrote"),
    SIGNATURE(".sig", Problem.NOT_SIGNED, "longer than any signature; choose the .sig file that gemma-edge sign wrote"),
    ;

    fun of(bundle: File) = File(bundle.parentFile, bundle.name + suffix)

    /** Null where there is none. Throws [DemoException], STORAGE or what is [tooLong]. */
    fun readBeside(bundle: File): String? {
        val file = of(bundle)
        return try {
            file.takeIf { it.exists() }?.let { read(it.inputStream(), it.name) }
        } catch (error: IOException) {
            throw DemoException(Problem.STORAGE, "${file.name}: cannot read (${error.message}); copy it again", error)
        }
    }

    fun read(source: ByteSource): String = read(source.open(0, null).bytes, source.name)

    /** At the bundle's address with [suffix] added; null where the server has none. */
    fun fetch(url: URL): String? =
        try {
            read(HttpSource(URL(url, url.path + suffix + url.query?.let { "?$it" }.orEmpty())))
        } catch (error: DemoException) {
            if (error.problem == Problem.REFUSED_BY_SERVER) null else throw error
        } catch (error: IOException) {
            throw DemoException(Problem.NETWORK, "${url.host}: ${error.message}; try again", error)
        }

    private fun read(bytes: InputStream, name: String): String = bytes.use {
        val text = it.reader()
        val buffer = CharArray(LONGEST_CHARS + 1)
        var length = 0
        while (length < buffer.size) {
            val count = text.read(buffer, length, buffer.size - length)
            if (count < 0) return String(buffer, 0, length)
            length += count
        }
        throw DemoException(tooLong, "$name: $whatToDo")
    }

    private companion object {
        const val LONGEST_CHARS = 1 shl 20
    }
}
