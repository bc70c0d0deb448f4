package org.gemmaedge.app

import android.app.Activity
import android.content.ClipData
import android.content.ClipboardManager
import android.content.Intent
import android.content.pm.PackageManager
import android.os.Build
import android.os.Bundle
import android.view.ContextMenu
import android.view.Menu
import android.view.MenuItem
import android.view.View
import android.widget.AdapterView.AdapterContextMenuInfo
import android.widget.Button
import android.widget.ListView
import android.widget.TextView
import android.widget.Toast
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.chat.ChatState
import org.gemmaedge.core.chat.Phase
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.memory.ProcessMemory
import org.gemmaedge.core.store.StoredBundle

/** The chat. It owns nothing but views: the conversation and the engine live in [DemoApplication]. */
class ChatActivity : Activity() {
    private val app get() = application as DemoApplication
    private val scope = MainScope()
    private var watching: Job? = null
    private var lastPhase = Phase.IDLE
    private lateinit var messages: MessagesAdapter
    private lateinit var list: ListView
    private lateinit var composer: Composer
    private lateinit var prompt: LoadPrompt

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_chat)
        setActionBar(view(R.id.toolbar))
        messages = MessagesAdapter(this)
        list = view(R.id.messages)
        list.adapter = messages
        list.emptyView = view(R.id.empty)
        registerForContextMenu(list)
        composer = Composer(this)
        prompt = LoadPrompt(this, scope, onLoading = {})
        view<View>(R.id.notice).setOnClickListener { app.chat.noticeRead() }
        view<View>(R.id.choose_model).setOnClickListener { showModels() }
        view<View>(R.id.load_again).setOnClickListener { scope.launch { loadAgain() } }
    }

    override fun onRestoreInstanceState(savedInstanceState: Bundle) {
        super.onRestoreInstanceState(savedInstanceState)
        composer.restore(savedInstanceState)
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        composer.save(outState)
    }

    override fun onStart() {
        super.onStart()
        watching = scope.launch {
            launch { app.draft.state.collect { composer.render(app.chat.state.value, it) } }
            app.chat.state.collect { state ->
                render(state)
                delay(FRAME_MS) // tokens come faster than anybody reads; the newest state is never skipped
            }
        }
    }

    override fun onStop() {
        watching?.cancel()
        if (!isChangingConfigurations) app.draft.stopRecording() // nobody is recorded behind their back
        super.onStop()
    }

    override fun onDestroy() {
        scope.cancel()
        prompt.dismiss()
        super.onDestroy()
    }

    override fun onCreateOptionsMenu(menu: Menu): Boolean {
        menuInflater.inflate(R.menu.chat, menu)
        return true
    }

    override fun onPrepareOptionsMenu(menu: Menu): Boolean {
        val state = app.chat.state.value
        menu.findItem(R.id.menu_new).isEnabled = state.messages.isNotEmpty() && state.phase != Phase.GENERATING
        menu.findItem(R.id.menu_release).isEnabled = state.loaded != null
        return super.onPrepareOptionsMenu(menu)
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        when (item.itemId) {
            R.id.menu_models -> showModels()
            R.id.menu_settings -> startActivity(Intent(this, SettingsActivity::class.java))
            R.id.menu_new -> beginAnew()
            R.id.menu_release -> if (app.chat.state.value.loaded != null) app.chat.release(forMemory = false)
            else -> return super.onOptionsItemSelected(item)
        }
        return true
    }

    override fun onCreateContextMenu(menu: ContextMenu, view: View, info: ContextMenu.ContextMenuInfo?) {
        val message = messages.getItem((info as AdapterContextMenuInfo).position)
        menu.add(R.string.copy).setOnMenuItemClickListener { copy(message.text) }
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val uri = data?.data
        if (result == RESULT_OK && uri != null) composer.onPicked(request, uri)
    }

    override fun onRequestPermissionsResult(request: Int, permissions: Array<String>, results: IntArray) {
        if (request == Composer.ASK_MICROPHONE) composer.onMicrophoneAllowed(results.firstOrNull() == PackageManager.PERMISSION_GRANTED)
    }

    private fun beginAnew() {
        if (app.chat.state.value.phase == Phase.GENERATING) return // it began while the menu was open
        app.chat.newConversation()
        app.draft.clear()
        app.attachments.clear()
    }

    private fun copy(text: String): Boolean {
        getSystemService(ClipboardManager::class.java).setPrimaryClip(ClipData.newPlainText(getString(R.string.app_name), text))
        // Android 13 and newer show by themselves what was copied.
        if (Build.VERSION.SDK_INT < API_SHOWS_COPIES) Toast.makeText(this, R.string.copied, Toast.LENGTH_SHORT).show()
        return true
    }

    /** The model that was loaded last, if it is still there; after a process death or a release for memory. */
    private suspend fun loadAgain() {
        val last = app.preferences.lastBundle ?: return
        try {
            val stored = withContext(Dispatchers.IO) { app.bundles.open(File(last)) }
            if (stored.isVerified) prompt.ask(stored) else showModels()
        } catch (error: DemoException) {
            Toast.makeText(this, words(error.problem), Toast.LENGTH_LONG).show()
            showModels()
        }
    }

    private fun showModels() = startActivity(Intent(this, ModelsActivity::class.java))

    private fun render(state: ChatState) {
        messages.show(state.messages)
        composer.render(state, app.draft.state.value)
        renderNotice(state)
        renderModel(state)
        if (lastPhase == Phase.GENERATING && state.phase != Phase.GENERATING) readOut(state)
        lastPhase = state.phase
    }

    private fun renderNotice(state: ChatState) {
        val notice = state.notice?.let { getString(R.string.notice_dismiss, words(it)) }.orEmpty()
        view<TextView>(R.id.notice).apply {
            if (text.toString() != notice) text = notice // TalkBack reads what is set
            visibility = visibleIf(notice.isNotEmpty())
        }
    }

    private fun renderModel(state: ChatState) {
        val isLoading = state.phase == Phase.LOADING
        view<View>(R.id.loading).visibility = visibleIf(isLoading)
        view<View>(R.id.load_bar).visibility = visibleIf(state.loaded == null)
        view<Button>(R.id.load_again).apply {
            val last = app.preferences.lastBundle
            visibility = visibleIf(last != null)
            text = last?.let { getString(R.string.load_again, nameOf(it)) }
        }
        // A phone that sleeps neither loads nor writes.
        view<View>(R.id.status).keepScreenOn = isLoading || state.phase == Phase.GENERATING
        view<TextView>(R.id.empty).setText(if (state.loaded == null) R.string.chat_empty else R.string.chat_ready)
        val status = statusOf(state)
        view<TextView>(R.id.status).apply { if (text.toString() != status) text = status }
    }

    private fun statusOf(state: ChatState): String {
        val loaded = state.loaded ?: return ""
        val name = nameOf(loaded.bundlePath)
        val place = words(loaded.backends.text)
        return when (state.phase) {
            Phase.LOADING -> getString(R.string.status_loading, name)
            Phase.GENERATING -> getString(R.string.status_writing)
            else -> ProcessMemory.read()?.let {
                getString(R.string.status_loaded_memory, name, place, formatBytes(it.anonBytes), formatBytes(it.fileBytes))
            } ?: getString(R.string.status_loaded, name, place)
        }
    }

    /** The whole answer, once it is there: TalkBack would stumble over every token. */
    @Suppress("DEPRECATION") // a live region would read the list's rows again whenever they are reused
    private fun readOut(state: ChatState) {
        state.messages.lastOrNull { it.role == Role.MODEL }?.let { list.announceForAccessibility(it.text) }
    }

    private fun nameOf(path: String) = File(path).name.removeSuffix(StoredBundle.SUFFIX)

    private companion object {
        const val FRAME_MS = 50L
        const val API_SHOWS_COPIES = 33
    }
}
