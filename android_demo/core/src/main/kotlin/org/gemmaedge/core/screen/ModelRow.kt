package org.gemmaedge.core.screen

import org.gemmaedge.core.Problem
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.prompt.Template
import org.gemmaedge.core.store.Listed
import org.gemmaedge.core.store.StoredBundle

/** A line of the list of models. */
data class ModelRow(val title: String, val detail: Phrase) {
    companion object {
        fun of(listed: Listed): ModelRow = when (listed) {
            is Listed.Here -> ModelRow(listed.stored.name, marked(listed.stored))
            is Listed.Damaged -> ModelRow(listed.file.name, refused(listed))
            is Listed.Unfinished -> ModelRow(listed.name, phrase("model_unfinished", formatBytes(listed.file.length())))
            is Listed.Offered -> ModelRow(listed.entry.title, phrase("model_offered", formatBytes(listed.entry.report.sizeBytes)))
        }

        private fun refused(listed: Listed.Damaged): Phrase = when (listed.problem) {
            Problem.NOT_SIGNED, Problem.UNEXPECTED -> phrase("model_refused", listed.message) // the file itself may be whole
            else -> phrase("model_damaged", listed.message)
        }

        private fun marked(stored: StoredBundle): Phrase {
            val facts = factsOf(stored)
            val origin = if (stored.isPushed) phrase("model_pushed", facts) else facts
            return when {
                stored.evidence == null -> phrase("model_unchecked", origin)
                stored.evidence == Evidence.SIGNATURE -> phrase("model_signed", origin)
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

/** A line of the list of templates: its name, and how it begins. */
fun rowOf(template: Template): Pair<String, String> =
    template.name to template.text.lineSequence().joinToString(" ").take(LONGEST_TEMPLATE_CHARS)

private const val LONGEST_TEMPLATE_CHARS = 120
