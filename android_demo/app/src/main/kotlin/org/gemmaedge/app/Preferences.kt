package org.gemmaedge.app

import android.content.SharedPreferences
import org.gemmaedge.core.chat.Accelerator
import org.gemmaedge.core.chat.Backends

/** What the app remembers besides the chat. */
class Preferences(private val stored: SharedPreferences) {
    /** Where the user wants things to run; null: not at all. Vision on the GPU and audio on the CPU suit Gemma 3n. */
    var backends: Backends
        get() = Backends(
            text = accelerator("text_backend", Accelerator.CPU) ?: Accelerator.CPU,
            vision = accelerator("vision_backend", Accelerator.GPU),
            audio = accelerator("audio_backend", Accelerator.CPU),
        )
        set(value) = stored.edit()
            .putString("text_backend", value.text.name)
            .putString("vision_backend", value.vision?.name ?: OFF)
            .putString("audio_backend", value.audio?.name ?: OFF)
            .apply()

    /** Whether a bundle's drafter is used, for speculative decoding: quicker, the answers are the same. */
    var mayDraft: Boolean
        get() = stored.getBoolean("may_draft", true)
        set(value) = stored.edit().putBoolean("may_draft", value).apply()

    /** The path of the bundle that was loaded last, to offer it again. */
    var lastBundle: String?
        get() = stored.getString("last_bundle", null)
        set(value) = stored.edit().putString("last_bundle", value).apply()

    private fun accelerator(key: String, default: Accelerator): Accelerator? =
        when (val name = stored.getString(key, null)) {
            null -> default
            else -> Accelerator.entries.find { it.name == name }
        }

    private companion object {
        const val OFF = "OFF"
    }
}
