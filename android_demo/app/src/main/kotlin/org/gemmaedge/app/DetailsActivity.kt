package org.gemmaedge.app

import android.content.Context
import android.content.Intent
import android.os.Bundle
import android.widget.ListView
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.screen.Phrase
import org.gemmaedge.core.screen.detailsOf

/** All that is known of a model: what it takes and needs, what conversion did to it, its licence. */
class DetailsActivity : Screen(R.layout.activity_details, R.menu.details) {
    private val file get() = File(checkNotNull(intent.getStringExtra(EXTRA_FILE)))

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        title = file.name
        val rows = RowsAdapter<Pair<Phrase, Any>>(this) { (name, value) -> words(name) to wordsOf(value) }
        view<ListView>(R.id.details).adapter = rows
        scope.launch {
            try {
                rows.show(detailsOf(withContext(Dispatchers.IO) { app.bundles.open(file) }))
            } catch (_: DemoException) { // deleted, or damaged since: the list of models says so
                finish()
            }
        }
    }

    override fun onChosen(id: Int) {
        if (id == R.id.menu_benchmark) startActivity(BenchActivity.of(this, file))
    }

    companion object {
        private const val EXTRA_FILE = "file"

        fun of(context: Context, file: File): Intent = Intent(context, DetailsActivity::class.java).putExtra(EXTRA_FILE, file.path)
    }
}
