package org.gemmaedge.app

import android.os.Bundle
import android.view.View
import android.widget.EditText
import android.widget.Spinner
import android.widget.Switch
import android.widget.TextView
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.launch
import org.gemmaedge.core.chat.Accelerator
import org.gemmaedge.core.chat.Backends
import org.gemmaedge.core.screen.ServerCard
import org.gemmaedge.core.screen.SettingsForm
import org.gemmaedge.core.screen.SettingsForm.Field

/** System prompt, sampling, tools, where the parts of a model run, and the local server. */
class SettingsActivity : Screen(R.layout.activity_settings) {
    private var server: ServerCard? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        if (savedInstanceState == null) {
            show(SettingsForm.of(app.chat.state.value.settings))
            show(app.preferences.backends)
            switch(R.id.may_draft).isChecked = app.preferences.mayDraft
        }
        view<View>(R.id.save).setOnClickListener { save() }
        switch(R.id.server).setOnClickListener {
            val isOn = switch(R.id.server).isChecked
            app.scope.launch(Dispatchers.IO) { if (isOn) app.server.on() else app.server.off() } // sockets, not for the main thread
        }
        view<View>(R.id.copy_server).setOnClickListener { server?.copied?.let { copyText(it) } }
    }

    override suspend fun watch() {
        app.server.state.collect { show(ServerCard.of(it)) }
    }

    private fun show(form: SettingsForm) {
        field(R.id.system_prompt).setText(form.systemPrompt)
        field(R.id.temperature).setText(form.temperature)
        field(R.id.top_k).setText(form.topK)
        field(R.id.top_p).setText(form.topP)
        field(R.id.seed).setText(form.seed)
        field(R.id.max_answer).setText(form.maxAnswerTokens)
        switch(R.id.uses_tools).isChecked = form.usesTools
    }

    private fun show(backends: Backends) {
        spinner(R.id.text_backend).setSelection(backends.text.ordinal)
        spinner(R.id.vision_backend).setSelection(backends.vision?.ordinal ?: Accelerator.entries.size)
        spinner(R.id.audio_backend).setSelection(backends.audio?.ordinal ?: Accelerator.entries.size)
    }

    private fun show(card: ServerCard) {
        server = card
        switch(R.id.server).isChecked = card.isOn
        view<TextView>(R.id.server_text).text = words(card.text)
        view<View>(R.id.copy_server).visibility = visibleIf(card.copied != null)
    }

    private fun save() {
        val form = SettingsForm(
            textOf(R.id.system_prompt),
            textOf(R.id.temperature),
            textOf(R.id.top_k),
            textOf(R.id.top_p),
            textOf(R.id.seed),
            textOf(R.id.max_answer),
            switch(R.id.uses_tools).isChecked,
        )
        for (wrong in form.wrong) field(fieldOf(wrong)).error = getString(R.string.settings_number)
        app.chat.change(form.settings ?: return)
        app.preferences.mayDraft = switch(R.id.may_draft).isChecked
        app.preferences.backends = Backends(
            text = checkNotNull(accelerator(R.id.text_backend)),
            vision = accelerator(R.id.vision_backend),
            audio = accelerator(R.id.audio_backend),
        )
        finish()
    }

    private fun fieldOf(field: Field): Int = when (field) {
        Field.TEMPERATURE -> R.id.temperature
        Field.TOP_K -> R.id.top_k
        Field.TOP_P -> R.id.top_p
        Field.SEED -> R.id.seed
        Field.MAX_ANSWER_TOKENS -> R.id.max_answer
    }

    private fun accelerator(id: Int): Accelerator? = Accelerator.entries.getOrNull(spinner(id).selectedItemPosition)

    private fun textOf(id: Int): String = field(id).text.toString()

    private fun field(id: Int): EditText = view(id)

    private fun spinner(id: Int): Spinner = view(id)

    private fun switch(id: Int): Switch = view(id)
}
