package org.gemmaedge.core.bench

import org.gemmaedge.core.json.Json

/** One run, or the medians of several; runtime/measure/bench.py has the same fields. Bytes are peaks of the whole process. */
data class Measurement(
    val initSeconds: Double,
    val firstTokenSeconds: Double,
    val prefillTokensPerSecond: Double,
    val decodeTokensPerSecond: Double,
    val anonBytes: Long,
    val fileBytes: Long,
    val totalBytes: Long,
) {
    private fun values() = mapOf(
        "init_s" to initSeconds,
        "time_to_first_token_s" to firstTokenSeconds,
        "prefill_tokens_per_s" to prefillTokensPerSecond,
        "decode_tokens_per_s" to decodeTokensPerSecond,
        "anon_bytes" to anonBytes,
        "file_bytes" to fileBytes,
        "total_bytes" to totalBytes,
    )

    companion object {
        /** The median of each figure on its own. */
        fun medians(runs: List<Measurement>): Measurement {
            fun middle(value: (Measurement) -> Double): Double {
                val sorted = runs.map(value).sorted()
                return (sorted[(sorted.size - 1) / 2] + sorted[sorted.size / 2]) / 2
            }
            return Measurement(
                middle { it.initSeconds },
                middle { it.firstTokenSeconds },
                middle { it.prefillTokensPerSecond },
                middle { it.decodeTokensPerSecond },
                middle { it.anonBytes.toDouble() }.toLong(),
                middle { it.fileBytes.toDouble() }.toLong(),
                middle { it.totalBytes.toDouble() }.toLong(),
            )
        }

        /** What `gemma-edge bench --json` prints; LiteRT-LM tells neither partitions nor encoders, as there with its executor. */
        fun toJson(runs: List<Measurement>): String = Json.write(
            mapOf(
                "median" to medians(runs).values(),
                "runs" to runs.map { it.values() },
                "partitions" to emptyMap<String, Any>(),
                "encoders" to emptyMap<String, Any>(),
            ),
        )
    }
}
