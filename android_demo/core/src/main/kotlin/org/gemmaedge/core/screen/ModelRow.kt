package org.gemmaedge.core.screen

import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.store.Listed
import org.gemmaedge.core.store.StoredBundle

/** A line of the list of models. */
data class ModelRow(val title: String, val detail: Phrase) {
    companion object {
        fun of(listed: Listed): ModelRow = when (listed) {
            is Listed.Here -> ModelRow(listed.stored.name, marked(listed.stored))
            is Listed.Damaged -> ModelRow(listed.file.name, phrase("model_damaged", listed.message))
            is Listed.Unfinished -> ModelRow(listed.name, phrase("model_unfinished", formatBytes(listed.file.length())))
            is Listed.Offered -> ModelRow(listed.entry.title, phrase("model_offered", formatBytes(listed.entry.report.sizeBytes)))
        }

        private fun marked(stored: StoredBundle): Phrase {
            val facts = factsOf(stored)
            val origin = if (stored.isPushed) phrase("model_pushed", facts) else facts
            return when {
                stored.evidence == null -> phrase("model_unchecked", origin)
                stored.isVerified -> origin
                else -> phrase("model_unverified", origin)
            }
        }

        private fun factsOf(stored: StoredBundle): Phrase {
            val size = formatBytes(stored.bundle.sizeBytes)
            val report = stored.report ?: return phrase("model_detail_unreported", size, inputsOf(stored))
            val memory = formatBytes(report.footprint.totalBytes)
            val facts = phrase("model_detail", size, inputsOf(stored), report.contextTokens, memory)
            return report.quality?.let { phrase("model_quality", facts, it.verdict, it.meaning) } ?: facts
        }
    }
}

/** All that is known of a model: a heading and what is said of it, in the order to show them. */
fun detailsOf(stored: StoredBundle): List<Pair<Phrase, Any>> {
    val report = stored.report
    val isGemma = report?.family?.startsWith("gemma") == true
    val checked = when (stored.evidence) {
        null -> phrase("checked_not_yet")
        Evidence.REPORT -> phrase("checked_report")
        Evidence.TABLE -> phrase("checked_table")
        Evidence.PART_OF_TABLE -> phrase("checked_part")
        Evidence.NONE -> phrase("checked_nothing")
    }
    return listOfNotNull(
        phrase("detail_file") to stored.file.name,
        phrase("detail_size") to formatBytes(stored.bundle.sizeBytes),
        phrase("detail_inputs") to inputsOf(stored),
        phrase("detail_checked") to checked,
        report?.let { phrase("detail_made") to it.target },
        report?.let { phrase("detail_context") to phrase("tokens", it.contextTokens) },
        report?.let { phrase("detail_memory") to formatBytes(it.footprint.totalBytes) },
        report?.profile?.let { phrase("detail_profile") to it },
        phrase("detail_quality") to (report?.quality?.let { phrase("quality", it.verdict, it.meaning) } ?: phrase("quality_unknown")),
        phrase("detail_licence") to if (isGemma) phrase("licence_gemma") else phrase("licence_unknown"),
    )
}

private fun inputsOf(stored: StoredBundle): List<Phrase> = listOfNotNull(
    phrase("takes_text"),
    phrase("takes_images").takeIf { stored.bundle.hasVision },
    phrase("takes_sound").takeIf { stored.bundle.hasAudio },
)
