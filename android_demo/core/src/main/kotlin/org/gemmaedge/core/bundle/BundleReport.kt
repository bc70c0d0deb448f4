package org.gemmaedge.core.bundle

import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.json.Json
import org.gemmaedge.core.json.JsonException
import org.gemmaedge.core.memory.Footprint
import org.gemmaedge.core.memory.KvCache

/** What conversion did to the model: "usable", and what that means, in converter/quality/verdict.py's words. */
data class BundleQuality(val verdict: String, val meaning: String, val figures: Figures?) {
    /**
     * Over [tokens] of a text: [top1], of how many tokens the likeliest is the checkpoint's; [kl], the mean divergence in
     * nats; the perplexity of the bundle and of the checkpoint.
     */
    data class Figures(val tokens: Int, val top1: Double, val kl: Double, val perplexity: Double, val referencePerplexity: Double)
}

/**
 * What the app uses of the report that convert writes beside a bundle (converter/report.py, `model.litertlm.json`).
 *
 * [profile] is the device profile that the bundle was planned for; [sectionBytes] are in the order of the file;
 * [quality] is null in a report of a converter that did not measure yet; [checkpoint] is what it was made from.
 */
data class BundleReport(
    val target: String,
    val family: String,
    val contextTokens: Int,
    val profile: String?,
    val footprint: Footprint,
    val sectionBytes: Map<String, Long>,
    val fileName: String,
    val sizeBytes: Long,
    val sha256: String,
    val quality: BundleQuality?,
    val checkpoint: String?,
) {
    val hasVision: Boolean get() = "tf_lite_vision_encoder" in sectionBytes
    val hasAudio: Boolean get() = "tf_lite_audio_encoder_hw" in sectionBytes

    companion object {
        private val SHA256 = Regex("[0-9a-f]{64}")

        /** Throws [DemoException], NOT_A_REPORT, naming the first value that is missing or cannot be. */
        fun parse(text: String): BundleReport =
            try {
                of(Json.parse(text))
            } catch (error: JsonException) {
                throw DemoException(
                    Problem.NOT_A_REPORT,
                    "not a converter's report (${error.message}); choose the .json file that convert wrote beside the bundle",
                    error,
                )
            }

        internal fun of(report: Json): BundleReport {
            val output = report["output"]
            val sha256 = output["sha256"].text
            if (!SHA256.matches(sha256)) throw JsonException("output.sha256: found \"$sha256\", expected 64 hexadecimal digits")
            return BundleReport(
                target = report["target"].text,
                family = report["family"].text,
                contextTokens = report["context_tokens"].int,
                profile = report["profile"].optional { text },
                footprint = footprint(report),
                sectionBytes = report["sections"].items.associate { it["name"].text to it["bytes"].long },
                fileName = output["file"].text,
                sizeBytes = output["bytes"].long,
                sha256 = sha256,
                quality = report["quality"].optional { BundleQuality(this["verdict"].text, this["meaning"].text, figures(this)) },
                checkpoint = report["source"].optional { this["checkpoint"].optional { text } },
            )
        }

        private fun figures(quality: Json): BundleQuality.Figures? = quality["kl"].optional {
            BundleQuality.Figures(
                quality["tokens"].int,
                quality["top1"].double,
                double,
                quality["perplexity"].double,
                quality["reference_perplexity"].double,
            )
        }

        private fun footprint(report: Json): Footprint {
            val prefills = report["prefill_tokens"].items.map { it.int }
            return try {
                Footprint(
                    anonBytes = report["footprint"]["anon_bytes"].long,
                    fileBytes = report["footprint"]["file_bytes"].long,
                    contextTokens = report["context_tokens"].int,
                    shortestContextTokens = prefills.maxOrNull() ?: throw JsonException("prefill_tokens: found none, expected one"),
                    caches = report["kv"]["layers"].items.map { KvCache(it["slots"].int, it["nbytes"].long) },
                )
            } catch (error: IllegalArgumentException) {
                throw JsonException("footprint: ${error.message}")
            }
        }
    }
}
