package org.gemmaedge.core.screen

import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.memory.DeviceMemory
import org.gemmaedge.core.memory.Fit
import org.gemmaedge.core.memory.MemoryVerdict
import org.gemmaedge.core.store.StoredBundle

/** What is asked before a model is loaded. [instead]: loads a shorter one; [anyway]: loads this one. */
data class LoadQuestion(val title: Phrase, val text: List<Phrase>, val instead: Phrase? = null, val anyway: Phrase? = null) {
    companion object {
        private val ANYWAY = phrase("verdict_load_anyway")

        /** Null where every byte has been held against something. */
        fun ofTrust(stored: StoredBundle): LoadQuestion? {
            if (stored.isVerified) return null
            val isPart = stored.evidence == Evidence.PART_OF_TABLE
            val why = if (isPart) phrase("unverified_part", stored.name) else phrase("unverified_nothing", stored.name)
            return LoadQuestion(phrase("unverified_title"), listOf(why), anyway = ANYWAY)
        }

        /** Null where it fits. [shorter]: the same model with a shorter context, on this phone, that fits. */
        fun ofMemory(stored: StoredBundle, device: DeviceMemory, shorter: StoredBundle?): LoadQuestion? {
            val report = stored.report
                ?: return LoadQuestion(
                    phrase("verdict_unknown_title"),
                    listOf(phrase("verdict_unknown", stored.name, formatBytes(device.usableBytes))),
                    anyway = ANYWAY,
                )
            val verdict = MemoryVerdict.of(report.footprint, device)
            val needed = formatBytes(verdict.neededBytes)
            val usable = formatBytes(verdict.usableBytes)
            val (title, why) = when (verdict.fit) {
                Fit.FITS -> return null
                Fit.SLOW -> phrase("verdict_slow_title") to phrase("verdict_slow", stored.name, needed, usable)
                Fit.NOT_NOW -> phrase("verdict_not_now_title") to phrase("verdict_not_now", stored.name, needed, usable)
                Fit.NEVER ->
                    phrase("verdict_never_title") to phrase("verdict_never", stored.name, needed, formatBytes(device.soldBytes))
            }
            val advice = shorter?.report?.let { phrase("verdict_shorter", shorter.name, it.contextTokens) }
                ?: verdict.shorterContextTokens?.let { phrase("verdict_convert", it) }
            return LoadQuestion(
                title,
                listOfNotNull(phrase("verdict_low_memory").takeIf { device.isLow }, why, advice),
                instead = shorter?.let { phrase("verdict_use_shorter", it.name) },
                anyway = ANYWAY.takeIf { verdict.mayLoad },
            )
        }
    }
}
