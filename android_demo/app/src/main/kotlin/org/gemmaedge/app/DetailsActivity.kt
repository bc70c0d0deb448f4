package org.gemmaedge.app

import android.app.Activity
import android.content.Context
import android.content.Intent
import android.os.Bundle
import android.view.Menu
import android.view.MenuItem
import android.widget.ListView
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.screen.Phrase
import org.gemmaedge.core.screen.detailsOf

/** All that is known of a model: what it takes and needs, what conversion did to it, its licence. */
class DetailsActivity : Activity() {
    private val app get() = application as DemoApplication
    private val scope = screenScope()
    private val file get() = File(checkNotNull(intent.getStringExtra(EXTRA_FILE)))

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        showLayout(R.layout.activity_details)
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

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }

    override fun onCreateOptionsMenu(menu: Menu): Boolean {
        menuInflater.inflate(R.menu.details, menu)
        return true
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        when (item.itemId) {
            android.R.id.home -> finish()
            R.id.menu_benchmark -> startActivity(BenchActivity.of(this, file))
            else -> return super.onOptionsItemSelected(item)
        }
        return true
    }

    companion object {
        private const val EXTRA_FILE = "file"

        fun of(context: Context, file: File): Intent = Intent(context, DetailsActivity::class.java).putExtra(EXTRA_FILE, file.path)
    }
}
