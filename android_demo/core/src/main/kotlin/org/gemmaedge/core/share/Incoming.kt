package org.gemmaedge.core.share

import java.net.URI
import java.net.URISyntaxException
import java.net.URLDecoder
import org.gemmaedge.core.store.StoredBundle

/** What another app, or a link, hands over. Nothing of it happens by itself: the user sends, loads or downloads. */
sealed interface Incoming {
    /** To be written into the field of the next message. */
    data class Words(val text: String) : Incoming

    /** To be attached: the addresses of images, or of sound. */
    data class Files(val isImage: Boolean, val addresses: List<String>, val text: String?) : Incoming

    /** A bundle, to be imported. */
    data class BundleFile(val address: String) : Incoming

    /** The address of a bundle, to be asked about. */
    data class Download(val url: String) : Incoming
}

/** An intent, as Android gives it: [type] is a MIME type, [streams] are what EXTRA_STREAM holds, [data] is what is to be viewed. */
data class Handed(
    val action: String?,
    val type: String? = null,
    val text: String? = null,
    val streams: List<String> = emptyList(),
    val data: String? = null,
)

/** Null for what this app has no use for. */
fun incoming(handed: Handed): Incoming? = when (handed.action) {
    "android.intent.action.SEND", "android.intent.action.SEND_MULTIPLE" -> sent(handed)
    "android.intent.action.VIEW" -> handed.data?.let(::viewed)
    else -> null
}

/** From apps that keep files to themselves or name them by a number, a bundle comes without its name: it is asked of them later. */
private fun sent(handed: Handed): Incoming? {
    // Addresses of this app's own files are not another app's to hand over.
    val streams = handed.streams.filter { it.startsWith("content://") && !it.startsWith("content://$OWN_AUTHORITY") }
    val type = handed.type.orEmpty()
    val text = handed.text?.takeIf { it.isNotBlank() }?.take(LONGEST_TEXT_CHARS)
    return when {
        type.startsWith("image/") && streams.isNotEmpty() -> Incoming.Files(isImage = true, streams.take(MOST_FILES), text)
        type.startsWith("audio/") && streams.isNotEmpty() -> Incoming.Files(isImage = false, streams.take(MOST_FILES), text)
        type == "application/octet-stream" && streams.size == 1 -> Incoming.BundleFile(streams.single())
        else -> text?.let(Incoming::Words)
    }
}

private fun viewed(data: String): Incoming? {
    if (data.startsWith("content://") && !data.startsWith("content://$OWN_AUTHORITY")) return Incoming.BundleFile(data)
    val uri = try {
        URI(data)
    } catch (_: URISyntaxException) {
        return null
    }
    if (uri.scheme != LINK_SCHEME) return null
    val values = uri.rawQuery.orEmpty().split('&').mapNotNull { part ->
        val (name, value) = part.split('=', limit = 2).takeIf { it.size == 2 } ?: return@mapNotNull null
        name to decoded(value)
    }.toMap()
    return when (uri.host) {
        "ask" -> values["text"]?.takeIf { it.isNotBlank() }?.let { Incoming.Words(it.take(LONGEST_TEXT_CHARS)) }
        "download" -> values["url"]?.takeIf { it.startsWith("https://") && StoredBundle.SUFFIX in it }?.let(Incoming::Download)
        else -> null
    }
}

private fun decoded(value: String): String =
    try {
        URLDecoder.decode(value, "UTF-8")
    } catch (_: IllegalArgumentException) {
        value
    }

/** gemma-edge://ask?text=..., gemma-edge://download?url=https://... */
const val LINK_SCHEME = "gemma-edge"

/** Of the provider that a camera writes into. */
const val OWN_AUTHORITY = "org.gemmaedge.app.camera"
private const val MOST_FILES = 8
private const val LONGEST_TEXT_CHARS = 20_000
