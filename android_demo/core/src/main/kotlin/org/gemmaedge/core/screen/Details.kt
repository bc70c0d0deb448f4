package org.gemmaedge.core.screen

import org.gemmaedge.core.bundle.BundleQuality
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.store.StoredBundle

/** All that is known of a model: a heading and what is said of it, in the order to show them. */
fun detailsOf(stored: StoredBundle): List<Pair<Phrase, Any>> {
    val report = stored.report
    val checked = when (stored.evidence) {
        null -> phrase("checked_not_yet")
        Evidence.SIGNATURE -> phrase("checked_signature")
        Evidence.REPORT -> phrase("checked_report")
        Evidence.TABLE -> phrase("checked_table")
        Evidence.PART_OF_TABLE -> phrase("checked_part")
        Evidence.NONE -> phrase("checked_nothing")
    }
    return listOfNotNull(
        phrase("detail_file") to stored.file.name,
        phrase("detail_size") to formatBytes(stored.bundle.sizeBytes),
        phrase("detail_inputs") to inputsOf(stored),
        phrase("detail_drafter") to if (stored.bundle.hasDrafter) phrase("yes") else phrase("no"),
        phrase("detail_checked") to checked,
        report?.let { phrase("detail_digest") to it.sha256 },
        report?.let { phrase("detail_made") to it.target },
        report?.checkpoint?.let { phrase("detail_checkpoint") to it },
        report?.let { phrase("detail_context") to phrase("tokens", it.contextTokens) },
        report?.let { phrase("detail_memory") to formatBytes(it.footprint.totalBytes) },
        report?.profile?.let { phrase("detail_profile") to it },
        phrase("detail_quality") to (report?.quality?.let { phrase("quality", it.verdict, it.meaning) } ?: phrase("quality_unknown")),
        report?.quality?.figures?.let { phrase("detail_measured") to measured(it) },
        phrase("detail_licence") to licenceOf(report?.family),
    )
}

private fun measured(figures: BundleQuality.Figures): Phrase =
    phrase("quality_figures", figures.tokens, figures.top1 * PERCENT, figures.kl, figures.perplexity, figures.referencePerplexity)

/** converter/provenance/facts.py, LICENCES. */
private fun licenceOf(family: String?): Phrase = when (family) {
    "gemma3", "gemma3n" -> phrase("licence_gemma")
    "gemma4" -> phrase("licence_apache")
    else -> phrase("licence_unknown")
}

internal fun inputsOf(stored: StoredBundle): List<Phrase> = listOfNotNull(
    phrase("takes_text"),
    phrase("takes_images").takeIf { stored.bundle.hasVision },
    phrase("takes_sound").takeIf { stored.bundle.hasAudio },
)

private const val PERCENT = 100
