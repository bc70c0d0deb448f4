package org.gemmaedge.core.screen

import org.gemmaedge.core.chat.ChatSettings
import org.gemmaedge.core.chat.SamplerSettings

/** The settings of a chat as a form has them: texts, that may be wrong. */
data class SettingsForm(
    val systemPrompt: String,
    val temperature: String,
    val topK: String,
    val topP: String,
    val seed: String,
    val maxAnswerTokens: String,
    val usesTools: Boolean,
) {
    enum class Field { TEMPERATURE, TOP_K, TOP_P, SEED, MAX_ANSWER_TOKENS }

    /** The fields that hold no number within their limits. */
    val wrong: Set<Field>
        get() = mapOf(
            Field.TEMPERATURE to temperature.toDoubleOrNull()?.takeIf { it >= 0 && it.isFinite() },
            Field.TOP_K to topK.toIntOrNull()?.takeIf { it >= 1 },
            Field.TOP_P to topP.toDoubleOrNull()?.takeIf { it in 0.0..1.0 },
            Field.SEED to seed.toIntOrNull(),
            Field.MAX_ANSWER_TOKENS to if (maxAnswerTokens.isEmpty()) 1 else maxAnswerTokens.toIntOrNull()?.takeIf { it >= 1 },
        ).filterValues { it == null }.keys

    /** Null where a field is [wrong]. */
    val settings: ChatSettings?
        get() = if (wrong.isNotEmpty()) {
            null
        } else {
            val sampler = SamplerSettings(topK.toInt(), topP.toDouble(), temperature.toDouble(), seed.toInt())
            ChatSettings(systemPrompt, sampler, maxAnswerTokens.toIntOrNull(), usesTools)
        }

    companion object {
        fun of(settings: ChatSettings) = SettingsForm(
            settings.systemPrompt,
            settings.sampler.temperature.toString(),
            settings.sampler.topK.toString(),
            settings.sampler.topP.toString(),
            settings.sampler.seed.toString(),
            settings.maxAnswerTokens?.toString().orEmpty(),
            settings.usesTools,
        )
    }
}
