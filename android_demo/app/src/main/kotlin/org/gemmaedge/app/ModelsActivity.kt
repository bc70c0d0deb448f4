package org.gemmaedge.app

import android.Manifest
import android.app.AlertDialog
import android.content.Context
import android.content.Intent
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.view.ContextMenu
import android.view.View
import android.widget.AdapterView.AdapterContextMenuInfo
import android.widget.Button
import android.widget.EditText
import android.widget.ListView
import android.widget.ProgressBar
import android.widget.TextView
import android.widget.Toast
import java.net.MalformedURLException
import java.net.URL
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.screen.ModelRow
import org.gemmaedge.core.screen.WorkBar
import org.gemmaedge.core.screen.phraseOf
import org.gemmaedge.core.share.Incoming
import org.gemmaedge.core.store.Listed
import org.gemmaedge.core.store.Pause
import org.gemmaedge.core.store.StoredBundle
import org.gemmaedge.core.store.WorkRequest
import org.gemmaedge.core.store.WorkState

/** The bundles: import, download, verify, delete, and load one. */
class ModelsActivity : Screen(R.layout.activity_models, R.menu.models) {
    private lateinit var models: RowsAdapter<Listed>
    private lateinit var prompt: LoadPrompt

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        models = RowsAdapter(this) { listed -> ModelRow.of(listed).let { it.title to words(it.detail) } }
        prompt = LoadPrompt(this, scope) { app.load(it, onLoading = ::finish) }
        view<ListView>(R.id.models).apply {
            adapter = models
            emptyView = this@ModelsActivity.view(R.id.empty)
            setOnItemClickListener { _, _, position, _ -> chosen(models.getItem(position)) }
            registerForContextMenu(this)
        }
        view<Button>(R.id.work_stop).setOnClickListener { stopOrClose() }
        view<Button>(R.id.work_pause).setOnClickListener { pauseOrGoOn() }
        if (savedInstanceState == null) intent.data?.let(::take)
    }

    override suspend fun watch() {
        if (app.work.shouldGoOn) app.work.resume()
        list() // a copy may run for minutes before the collector lists
        app.work.state.collect { state ->
            render(state)
            if (state is WorkState.Running) delay(PAUSE_MS) else list() // a copy reports every 256 KiB
            if (state is WorkState.Done && state.wasHere) {
                app.work.seen()
                prompt.ask(state.stored)
            }
        }
    }

    override fun onDestroy() {
        prompt.dismiss()
        super.onDestroy()
    }

    override fun onChosen(id: Int) {
        when (id) {
            R.id.menu_import -> pick()
            R.id.menu_download -> askForAddress()
        }
    }

    override fun onCreateContextMenu(menu: ContextMenu, view: View, info: ContextMenu.ContextMenuInfo?) {
        val listed = models.getItem((info as AdapterContextMenuInfo).position)
        // A copy that runs is not to lose its file.
        if (listed is Listed.Here) menu.add(R.string.details).setOnMenuItemClickListener { details(listed.stored) }
        if (listed !is Listed.Offered && !app.work.isRunning) menu.add(R.string.delete).setOnMenuItemClickListener { delete(listed) }
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        if (request != PICK || result != RESULT_OK || data == null) return
        val clip = data.clipData
        val picked = if (clip == null) listOfNotNull(data.data) else (0 until clip.itemCount).map { clip.getItemAt(it).uri }
        scope.launch { copyHere(picked) }
    }

    private fun pick() {
        Toast.makeText(this, R.string.import_choose, Toast.LENGTH_LONG).show()
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT)
            .addCategory(Intent.CATEGORY_OPENABLE)
            .setType("*/*") // no MIME type is registered for bundles
            .putExtra(Intent.EXTRA_ALLOW_MULTIPLE, true)
        startActivityForResult(intent, PICK)
    }

    private suspend fun copyHere(picked: List<Uri>) {
        try {
            val sources = withContext(Dispatchers.IO) { picked.map { ContentSource(contentResolver, it) } }
            val (reports, others) = sources.partition { it.name.endsWith(".json") }
            val (signatures, bundles) = others.partition { it.name.endsWith(".sig") }
            if (bundles.size == 1 && reports.size <= 1 && signatures.size <= 1) {
                val bundle = bundles.single()
                val request =
                    WorkRequest.Import(bundle.name, bundle.address, reports.singleOrNull()?.address, signatures.singleOrNull()?.address)
                sources.forEach { it.keepReadable() }
                begin(request)
            } else {
                Toast.makeText(this, R.string.import_one_bundle, Toast.LENGTH_LONG).show()
            }
        } catch (error: DemoException) {
            show(error)
        }
    }

    /** What another app or a link has handed over. */
    private fun take(handed: Uri) {
        if (handed.scheme == "https") return askForAddress(handed.toString())
        AlertDialog.Builder(this)
            .setMessage(R.string.import_question)
            .setPositiveButton(R.string.menu_import) { _, _ -> scope.launch { copyHere(listOf(handed)) } }
            .setNegativeButton(R.string.cancel, null)
            .show()
    }

    private fun askForAddress(address: String = "") {
        val content = layoutInflater.inflate(R.layout.dialog_url, null)
        val field = content.view<EditText>(R.id.url).apply { setText(address) }
        val dialog = AlertDialog.Builder(this)
            .setTitle(R.string.menu_download)
            .setView(content)
            .setPositiveButton(R.string.download, null)
            .setNegativeButton(R.string.cancel, null)
            .show()
        // Set afterwards: the builder's own listener would close the dialog over a wrong address.
        dialog.getButton(AlertDialog.BUTTON_POSITIVE).setOnClickListener {
            val url = webAddress(field.text.toString().trim())
            if (url == null) {
                field.error = getString(R.string.url_not_https)
            } else {
                begin(WorkRequest.Download(url.toString()))
                dialog.dismiss()
            }
        }
    }

    /** Without leave to show it, a notification is all that is missing: the work goes on. */
    private fun begin(request: WorkRequest) {
        if (app.work.isRunning) return
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.TIRAMISU) {
            requestPermissions(arrayOf(Manifest.permission.POST_NOTIFICATIONS), ASK_TO_NOTIFY)
        }
        app.work.begin(request)
    }

    private fun stopOrClose() {
        val state = app.work.state.value
        if (state is WorkState.Done || state is WorkState.Failed) app.work.seen() else app.work.stop()
    }

    private fun pauseOrGoOn() {
        val state = app.work.state.value
        when {
            state is WorkState.Running -> app.work.pause()
            state is WorkState.Asking || (state as? WorkState.Paused)?.reason == Pause.METERED -> app.work.allowMetered()
            else -> app.work.resume()
        }
    }

    private fun webAddress(text: String): URL? =
        try {
            URL(text).takeIf { it.protocol == "https" && it.host.isNotEmpty() && it.path.substringAfterLast('/').isNotEmpty() }
        } catch (_: MalformedURLException) {
            null
        }

    private fun chosen(listed: Listed) {
        if (app.work.isRunning) return
        when (listed) {
            is Listed.Here -> if (listed.stored.evidence != null) prompt.ask(listed.stored) else app.work.verify(listed.stored)
            is Listed.Offered -> begin(WorkRequest.Offered(listed.entry.report.fileName))
            is Listed.Damaged -> Toast.makeText(this, listed.message, Toast.LENGTH_LONG).show()
            is Listed.Unfinished -> Toast.makeText(this, R.string.model_unfinished_what_to_do, Toast.LENGTH_LONG).show()
        }
    }

    private fun delete(listed: Listed): Boolean {
        val (file, isPushed) = when (listed) {
            is Listed.Here -> listed.stored.file to listed.stored.isPushed
            is Listed.Damaged -> listed.file to listed.isPushed
            is Listed.Unfinished -> listed.file to false
            is Listed.Offered -> return false
        }
        val dialog = AlertDialog.Builder(this).setNegativeButton(R.string.close, null)
        if (isPushed) {
            dialog.setMessage(getString(R.string.delete_pushed, file.path))
        } else {
            dialog.setMessage(getString(R.string.delete_question, file.name)).setPositiveButton(R.string.delete) { _, _ ->
                scope.launch {
                    // Gigabytes: storage takes its time over them.
                    withContext(Dispatchers.IO) {
                        if (listed is Listed.Unfinished) app.bundles.delete(listed) else app.bundles.delete(file)
                    }
                    list()
                }
            }
        }
        dialog.show()
        return true
    }

    private suspend fun list() = models.show(withContext(Dispatchers.IO) { app.bundles.list() })

    private fun render(state: WorkState) {
        val bar = WorkBar.of(state)
        view<View>(R.id.work).visibility = visibleIf(bar != null)
        if (bar == null) return
        view<TextView>(R.id.work_text).apply {
            // TalkBack reads the outcome, not every step on the way.
            accessibilityLiveRegion = if (bar.isRunning) View.ACCESSIBILITY_LIVE_REGION_NONE else View.ACCESSIBILITY_LIVE_REGION_POLITE
            text = words(bar.text)
        }
        view<ProgressBar>(R.id.work_progress).apply {
            visibility = visibleIf(bar.isRunning)
            isIndeterminate = bar.permille == null
            bar.permille?.let { progress = it }
        }
        view<Button>(R.id.work_pause).apply {
            visibility = visibleIf(bar.goOn != null)
            text = bar.goOn?.let { words(it) }
        }
        view<Button>(R.id.work_stop).text = words(bar.stop)
    }

    private fun details(stored: StoredBundle): Boolean {
        startActivity(DetailsActivity.of(this, stored.file))
        return true
    }

    private fun show(error: DemoException) {
        AlertDialog.Builder(this)
            .setMessage(getString(R.string.work_failed, words(phraseOf(error.problem)), error.message))
            .setPositiveButton(R.string.close, null)
            .show()
    }

    companion object {
        private const val PICK = 1
        private const val ASK_TO_NOTIFY = 2
        private const val PAUSE_MS = 200L

        /** With what was handed over: the address of a document, or of a download. */
        fun of(context: Context, incoming: Incoming): Intent {
            val address = if (incoming is Incoming.Download) incoming.url else (incoming as Incoming.BundleFile).address
            return Intent(context, ModelsActivity::class.java).setData(Uri.parse(address)).addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION)
        }
    }
}
