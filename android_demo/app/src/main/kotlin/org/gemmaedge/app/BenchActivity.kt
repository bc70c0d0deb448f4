package org.gemmaedge.app

import android.content.Context
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.ListView
import android.widget.TextView
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.combine
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.chat.MeasureRequest
import org.gemmaedge.core.screen.BenchScreen
import org.gemmaedge.core.screen.Phrase
import org.gemmaedge.core.store.StoredBundle

/** A benchmark of one model, to compare with `gemma-edge bench` on a computer: the same work, the same JSON. */
class BenchActivity : Screen(R.layout.activity_bench) {
    private var stored: StoredBundle? = null
    private var shown: BenchScreen? = null
    private lateinit var figures: RowsAdapter<Pair<Phrase, Phrase>>
    private lateinit var prompt: LoadPrompt

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        figures = RowsAdapter(this) { (name, value) -> words(name) to words(value) }
        view<ListView>(R.id.figures).adapter = figures
        prompt = LoadPrompt(this, scope, ::measure)
        view<View>(R.id.start).setOnClickListener { stored?.let(prompt::ask) }
        view<View>(R.id.stop).setOnClickListener { app.bench.stop() }
        view<View>(R.id.share).setOnClickListener { share() }
    }

    override suspend fun watch() {
        stored = open()
        combine(app.bench.state, app.chat.state) { bench, chat -> bench to chat }.collect { (bench, chat) ->
            render(BenchScreen.of(bench, stored?.name, isEngineFree = chat.canLoad))
        }
    }

    override fun onDestroy() {
        prompt.dismiss()
        super.onDestroy()
    }

    /** Null where it is no longer there, or has never been looked at. */
    private suspend fun open(): StoredBundle? =
        try {
            withContext(Dispatchers.IO) { app.bundles.open(File(checkNotNull(intent.getStringExtra(EXTRA_FILE)))) }
                .takeIf { it.evidence != null }
        } catch (_: DemoException) {
            null
        }

    private fun measure(stored: StoredBundle) {
        val load = stored.request(app.preferences.backends, mayDraft = false, app.cacheDir.path)
        app.bench.start(stored.name, MeasureRequest(load, PREFILL_TOKENS, DECODE_TOKENS), RUNS)
    }

    private fun share() {
        val send = Intent(Intent.ACTION_SEND).setType("application/json").putExtra(Intent.EXTRA_TEXT, shown?.shared ?: return)
        startActivity(Intent.createChooser(send, title))
    }

    private fun render(screen: BenchScreen) {
        shown = screen
        view<TextView>(R.id.bench_text).apply {
            val text = words(screen.text)
            if (this.text.toString() != text) this.text = text // TalkBack reads what is set
            keepScreenOn = screen.isRunning
        }
        figures.show(screen.figures)
        view<View>(R.id.bench_progress).visibility = visibleIf(screen.isRunning)
        view<View>(R.id.start).isEnabled = screen.canStart
        view<View>(R.id.stop).isEnabled = screen.canStop
        view<View>(R.id.share).isEnabled = screen.shared != null
    }

    companion object {
        private const val EXTRA_FILE = "file"

        // The defaults of gemma-edge bench.
        private const val PREFILL_TOKENS = 256
        private const val DECODE_TOKENS = 64
        private const val RUNS = 3

        fun of(context: Context, file: File): Intent = Intent(context, BenchActivity::class.java).putExtra(EXTRA_FILE, file.path)
    }
}
