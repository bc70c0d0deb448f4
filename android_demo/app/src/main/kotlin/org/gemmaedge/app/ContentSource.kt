package org.gemmaedge.app

import android.content.ContentResolver
import android.content.Intent
import android.net.Uri
import android.provider.DocumentsContract.Document
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.store.WorkRequest
import org.gemmaedge.core.transfer.ByteSource
import org.gemmaedge.core.transfer.Opened

/** A document that the user picked: on this phone, on a USB disk, or wherever another app keeps it. */
class ContentSource(private val resolver: ContentResolver, private val uri: Uri) : ByteSource {
    private val facts = query()

    /** What [WorkRequest.Import] remembers it by. */
    val address: String get() = uri.toString()

    /** Also after a restart of the phone. A provider that does not allow it is asked again for an import that was interrupted. */
    fun keepReadable() {
        try {
            resolver.takePersistableUriPermission(uri, Intent.FLAG_GRANT_READ_URI_PERMISSION)
        } catch (_: SecurityException) {
            // Readable as long as this process lives.
        }
    }

    override val name: String get() = facts.name

    override fun open(offset: Long, identity: String?): Opened {
        val now = query()
        val begin = if (identity != null && identity == now.identity) offset else 0
        val bytes = openAt(begin)
        return if (bytes != null) Opened(bytes, begin, now.sizeBytes, now.identity) else Opened(stream(), 0, now.sizeBytes, now.identity)
    }

    /** Null where the provider gives a pipe, which cannot skip. */
    private fun openAt(offset: Long): InputStream? {
        val bytes = stream()
        try {
            var left = offset
            while (left > 0) {
                val skipped = bytes.skip(left)
                if (skipped <= 0) throw IOException("cannot skip")
                left -= skipped
            }
            return bytes
        } catch (_: IOException) {
            bytes.close()
            return null
        }
    }

    private fun stream(): InputStream = readable { resolver.openInputStream(uri) ?: throw FileNotFoundException(uri.toString()) }

    private fun query(): Facts = readable {
        val columns = arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE, Document.COLUMN_LAST_MODIFIED)
        resolver.query(uri, columns, null, null, null)?.use { cursor ->
            if (!cursor.moveToFirst()) return@use null
            // A provider may leave out columns that it was asked for.
            fun <T> value(column: String, read: (Int) -> T): T? =
                cursor.getColumnIndex(column).takeIf { it >= 0 && !cursor.isNull(it) }?.let(read)
            val name = value(OpenableColumns.DISPLAY_NAME, cursor::getString) ?: "model"
            val sizeBytes = value(OpenableColumns.SIZE, cursor::getLong)?.takeIf { it > 0 }
            // Another app chose the name: File(...).name, so that it leads nowhere out of our folder.
            Facts(File(name).name, sizeBytes, value(Document.COLUMN_LAST_MODIFIED, cursor::getLong)?.takeIf { it > 0 })
        } ?: throw FileNotFoundException(uri.toString())
    }

    /** What no second attempt will cure. */
    private fun <T> readable(action: () -> T): T =
        try {
            action()
        } catch (error: FileNotFoundException) {
            throw gone(error)
        } catch (error: RuntimeException) { // what providers throw: a grant that has ended, an address they do not know
            throw gone(error)
        }

    private fun gone(error: Exception) =
        DemoException(Problem.STORAGE, "the document cannot be opened (${error.message}); choose it again", error)

    private class Facts(val name: String, val sizeBytes: Long?, modifiedMs: Long?) {
        /** Null where the provider does not tell: then an interrupted copy begins anew. */
        val identity: String? = if (sizeBytes != null && modifiedMs != null) "$sizeBytes bytes of $modifiedMs" else null
    }
}
