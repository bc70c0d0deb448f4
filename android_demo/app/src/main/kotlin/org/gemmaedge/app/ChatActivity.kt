package org.gemmaedge.app

import android.app.AlertDialog
import android.content.Intent
import android.content.pm.PackageManager
import android.os.Bundle
import android.os.Process
import android.view.ContextMenu
import android.view.Menu
import android.view.View
import android.widget.AdapterView.AdapterContextMenuInfo
import android.widget.Button
import android.widget.ListView
import android.widget.TextView
import android.widget.Toast
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.combine
import kotlinx.coroutines.flow.conflate
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.chat.ChatState
import org.gemmaedge.core.chat.DraftState
import org.gemmaedge.core.chat.Phase
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.memory.ProcessMemory
import org.gemmaedge.core.screen.ChatFacts
import org.gemmaedge.core.screen.ChatScreen
import org.gemmaedge.core.screen.Phrase
import org.gemmaedge.core.screen.phraseOf
import org.gemmaedge.core.share.Incoming
import org.gemmaedge.core.share.incoming
import org.gemmaedge.core.text.Block
import org.gemmaedge.core.text.parseMarkdown

/** The chat. It owns nothing but views: the conversation and the engine live in [DemoApplication]. */
class ChatActivity : Screen(R.layout.activity_chat, R.menu.chat) {
    private var lastPhase = Phase.IDLE
    private var shown: ChatScreen? = null
    private lateinit var messages: MessagesAdapter
    private lateinit var list: ListView
    private lateinit var composer: Composer
    private lateinit var prompt: LoadPrompt

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        messages = MessagesAdapter(this)
        list = view(R.id.messages)
        list.adapter = messages
        list.emptyView = view(R.id.empty)
        registerForContextMenu(list)
        composer = Composer(this)
        prompt = LoadPrompt(this, scope) { app.load(it, onLoading = {}) }
        view<View>(R.id.notice).setOnClickListener { if (shown?.noticeRestarts == true) askToRestart() else app.chat.noticeRead() }
        view<View>(R.id.choose_model).setOnClickListener { showModels() }
        view<View>(R.id.load_again).setOnClickListener { scope.launch { loadAgain() } }
        if (savedInstanceState == null) take(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        take(intent)
    }

    override fun onRestoreInstanceState(savedInstanceState: Bundle) {
        super.onRestoreInstanceState(savedInstanceState)
        composer.restore(savedInstanceState)
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        composer.save(outState)
    }

    override suspend fun watch() {
        combine(app.chat.state, app.draft.state) { chat, draft -> chat to draft }.conflate().collect { (chat, draft) ->
            render(chat, draft)
            delay(FRAME_MS) // tokens come faster than anybody reads; the newest state is never skipped
        }
    }

    override fun onStop() {
        if (!isChangingConfigurations) app.draft.stopRecording() // nobody is recorded behind their back
        super.onStop()
    }

    override fun onDestroy() {
        prompt.dismiss()
        super.onDestroy()
    }

    override fun onPrepareOptionsMenu(menu: Menu): Boolean {
        menu.findItem(R.id.menu_new).isEnabled = shown?.canBegin == true
        menu.findItem(R.id.menu_release).isEnabled = shown?.canRelease == true
        return super.onPrepareOptionsMenu(menu)
    }

    override fun onChosen(id: Int) {
        when (id) {
            R.id.menu_models -> showModels()
            R.id.menu_templates -> startActivityForResult(Intent(this, TemplatesActivity::class.java), Composer.PICK_TEMPLATE)
            R.id.menu_chats -> startActivity(Intent(this, ChatsActivity::class.java))
            R.id.menu_settings -> startActivity(Intent(this, SettingsActivity::class.java))
            R.id.menu_new -> beginAnew()
            R.id.menu_release -> if (app.chat.state.value.loaded != null) app.chat.release(forMemory = false)
        }
    }

    override fun onCreateContextMenu(menu: ContextMenu, view: View, info: ContextMenu.ContextMenuInfo?) {
        val place = (info as AdapterContextMenuInfo).position
        val message = messages.getItem(place)
        menu.add(R.string.copy).setOnMenuItemClickListener { copy(message.text) }
        for (code in parseMarkdown(message.text).filterIsInstance<Block.Code>().filter { !message.isUser }) {
            val name = code.text.lineSequence().first().take(CODE_NAME_CHARS)
            menu.add(getString(R.string.copy_code, name)).setOnMenuItemClickListener { copy(code.text) }
        }
        if (message.canEdit) menu.add(R.string.edit).setOnMenuItemClickListener { composer.edit(place, message.text).let { true } }
        if (message.canRegenerate) menu.add(R.string.regenerate).setOnMenuItemClickListener { regenerate() }
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        if (result == RESULT_OK) composer.onResult(request, data)
    }

    override fun onRequestPermissionsResult(request: Int, permissions: Array<String>, results: IntArray) {
        if (request == Composer.ASK_MICROPHONE) composer.onMicrophoneAllowed(results.firstOrNull() == PackageManager.PERMISSION_GRANTED)
    }

    private fun beginAnew() {
        app.draft.clear()
        scope.launch { app.chats.begin() }
    }

    private fun regenerate(): Boolean {
        if (app.chat.state.value.canSend) app.chat.regenerate() // otherwise it changed while the menu was open
        return true
    }

    private fun copy(text: String): Boolean {
        copyText(text)
        return true
    }

    /** What another app or a link hands over: it waits in the composer, or in the list of models, until the user says so. */
    private fun take(intent: Intent) {
        if (intent.flags and Intent.FLAG_ACTIVITY_LAUNCHED_FROM_HISTORY != 0) return // it was taken when it came
        when (val incoming = incoming(handed(intent))) {
            is Incoming.Words -> composer.write(incoming.text)
            is Incoming.Files -> composer.attach(incoming)
            is Incoming.BundleFile, is Incoming.Download -> startActivity(ModelsActivity.of(this, incoming))
            null -> Unit
        }
    }

    /** The model that was loaded last, if it is still there; after a process death or a release for memory. */
    private suspend fun loadAgain() {
        val last = app.preferences.lastBundle ?: return
        try {
            val stored = withContext(Dispatchers.IO) { app.bundles.open(File(last)) }
            if (stored.evidence != null) prompt.ask(stored) else showModels()
        } catch (error: DemoException) {
            Toast.makeText(this, words(phraseOf(error.problem)), Toast.LENGTH_LONG).show()
            showModels()
        }
    }

    /** The only way to get back what an engine holds that does not return. The chat is saved. */
    private fun askToRestart() {
        AlertDialog.Builder(this)
            .setMessage(R.string.restart_question)
            .setPositiveButton(R.string.restart) { _, _ ->
                startActivity(Intent.makeRestartActivityTask(componentName))
                Process.killProcess(Process.myPid())
            }
            .setNegativeButton(R.string.cancel, null)
            .show()
    }

    private fun showModels() = startActivity(Intent(this, ModelsActivity::class.java))

    private fun render(state: ChatState, draft: DraftState) {
        val facts = ChatFacts(ProcessMemory.read(), app.preferences.lastBundle, composer.hasMicrophone, WavRecorder.LONGEST_SECONDS)
        val screen = ChatScreen.of(state, draft, facts)
        shown = screen
        title = screen.title.ifEmpty { getString(R.string.app_name) }
        messages.show(screen.rows)
        composer.render(screen)
        show(view(R.id.notice), screen.notice)
        show(view(R.id.status), screen.status, isGoneIfEmpty = false)
        view<TextView>(R.id.empty).text = words(screen.empty)
        view<View>(R.id.loading).visibility = visibleIf(screen.isLoading)
        view<View>(R.id.load_bar).visibility = visibleIf(screen.showsLoadBar)
        view<Button>(R.id.load_again).apply {
            visibility = visibleIf(screen.loadAgain != null)
            text = screen.loadAgain?.let { words(it) }
        }
        view<View>(R.id.status).keepScreenOn = screen.staysAwake // a phone that sleeps neither loads nor writes
        if (lastPhase == Phase.GENERATING && state.phase != Phase.GENERATING) readOut(state)
        lastPhase = state.phase
    }

    private fun show(view: TextView, phrase: Phrase?, isGoneIfEmpty: Boolean = true) {
        val text = phrase?.let { words(it) }.orEmpty()
        if (view.text.toString() != text) view.text = text // TalkBack reads what is set
        if (isGoneIfEmpty) view.visibility = visibleIf(text.isNotEmpty())
    }

    /** The whole answer, once it is there: TalkBack would stumble over every token. */
    @Suppress("DEPRECATION") // a live region would read the list's rows again whenever they are reused
    private fun readOut(state: ChatState) {
        state.messages.lastOrNull { it.role == Role.MODEL }?.let { list.announceForAccessibility(it.text) }
    }

    private companion object {
        const val FRAME_MS = 50L
        const val CODE_NAME_CHARS = 30
    }
}
