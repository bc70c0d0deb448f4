package org.gemmaedge.app

import android.content.Intent
import android.net.Uri
import org.gemmaedge.core.share.Handed

/** An intent, as core judges it. Whatever another app has put in it that cannot be unpacked is left out. */
fun handed(intent: Intent): Handed =
    try {
        Handed(
            intent.action,
            intent.type,
            intent.getStringExtra(Intent.EXTRA_TEXT),
            streams(intent).map { it.toString() },
            intent.dataString,
        )
    } catch (_: RuntimeException) {
        Handed(intent.action, data = intent.dataString)
    }

@Suppress("DEPRECATION") // the form with a class is of Android 13, and forgets a sender's lists there
private fun streams(intent: Intent): List<Uri> {
    val several = intent.getParcelableArrayListExtra<Uri>(Intent.EXTRA_STREAM)
    return several ?: listOfNotNull(intent.getParcelableExtra<Uri>(Intent.EXTRA_STREAM))
}
