package org.gemmaedge.core.store

import java.io.File
import java.io.IOException
import org.gemmaedge.core.json.Json
import org.gemmaedge.core.json.JsonException

/** What brings a bundle here, in words that outlive the process. */
sealed interface WorkRequest {
    /** Under which it is shown. */
    val name: String

    /** Whether it uses the network. */
    val isDownload: Boolean get() = this !is Import

    /** From an address that the user gave. */
    data class Download(val url: String) : WorkRequest {
        override val name: String get() = bundleName(url.substringBefore('?').substringAfterLast('/'))
    }

    /** The catalogue's entry with a file of this name. */
    data class Offered(override val name: String) : WorkRequest

    /**
     * A document, and the report and the signature beside it, by addresses that the platform resolves; they stay readable
     * after a restart.
     */
    data class Import(
        val documentName: String,
        val document: String,
        val report: String?,
        val signature: String? = null,
    ) : WorkRequest {
        override val name: String get() = bundleName(documentName)
    }

    companion object {
        fun bundleName(name: String) = if (name.endsWith(StoredBundle.SUFFIX)) name else name + StoredBundle.SUFFIX
    }
}

/** Work that is not done. [mayUseMetered]: the user has allowed it; [wasRunning]: nobody has paused it. */
data class JournalEntry(val request: WorkRequest, val mayUseMetered: Boolean, val wasRunning: Boolean)

/** What is being brought, on disk: after the end of the process or a restart of the phone it goes on from here. */
class WorkJournal(private val file: File) {
    /** Null where nothing is to be gone on with, or where the file is not of this version. */
    fun read(): JournalEntry? =
        try {
            file.takeIf { it.exists() }?.let { entry(Json.parse(it.readText())) }
        } catch (_: IOException) {
            null
        } catch (_: JsonException) {
            null
        }

    fun write(entry: JournalEntry) {
        file.parentFile?.mkdirs()
        val unfinished = File(file.path + ".writing")
        unfinished.writeText(Json.write(values(entry)))
        if (!unfinished.renameTo(file)) throw IOException("${file.name}: cannot be replaced")
    }

    fun clear() {
        file.delete()
    }

    private fun values(entry: JournalEntry): Map<String, Any?> {
        val request = when (val it = entry.request) {
            is WorkRequest.Download -> mapOf("kind" to "download", "url" to it.url)
            is WorkRequest.Offered -> mapOf("kind" to "offered", "name" to it.name)
            is WorkRequest.Import -> mapOf(
                "kind" to "import", "name" to it.documentName, "document" to it.document, "report" to it.report,
                "signature" to it.signature,
            )
        }
        return request + mapOf("may_use_metered" to entry.mayUseMetered, "was_running" to entry.wasRunning)
    }

    private fun entry(json: Json): JournalEntry {
        val request = when (val kind = json["kind"].text) {
            "download" -> WorkRequest.Download(json["url"].text)
            "offered" -> WorkRequest.Offered(json["name"].text)
            "import" -> WorkRequest.Import(
                json["name"].text,
                json["document"].text,
                json["report"].optional { text },
                json["signature"].optional { text },
            )
            else -> throw JsonException("kind: found \"$kind\"")
        }
        return JournalEntry(request, json["may_use_metered"].boolean, json["was_running"].boolean)
    }
}
