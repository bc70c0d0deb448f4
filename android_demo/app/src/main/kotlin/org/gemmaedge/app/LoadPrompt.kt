package org.gemmaedge.app

import android.app.Activity
import android.app.AlertDialog
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.memory.Fit
import org.gemmaedge.core.memory.MemoryVerdict
import org.gemmaedge.core.memory.ProcessMemory
import org.gemmaedge.core.screen.LoadQuestion
import org.gemmaedge.core.store.StoredBundle

/**
 * What is asked before a model is loaded: is it what its maker made, and does it fit into memory? Where there is nothing
 * to ask, [then] is called at once.
 */
class LoadPrompt(private val activity: Activity, private val scope: CoroutineScope, private val then: (StoredBundle) -> Unit) {
    private val app = activity.application as DemoApplication
    private var dialog: AlertDialog? = null

    fun ask(stored: StoredBundle) {
        LoadQuestion.ofTrust(stored)?.let { show(it, stored, null, ::askForMemory) } ?: askForMemory(stored)
    }

    private fun askForMemory(stored: StoredBundle) {
        val held = ProcessMemory.read()?.anonBytes.takeIf { app.chat.state.value.loaded != null } ?: 0L
        val device = readDeviceMemory(activity, freedBytes = held)
        scope.launch {
            val shorter = stored.report?.let { report ->
                withContext(Dispatchers.IO) {
                    app.bundles.shorter(report) { MemoryVerdict.of(it.footprint, device).fit == Fit.FITS }
                }
            }
            LoadQuestion.ofMemory(stored, device, shorter)?.let { show(it, stored, shorter, then) } ?: then(stored)
        }
    }

    /** The screen goes away. */
    fun dismiss() = dialog?.dismiss()

    private fun show(question: LoadQuestion, stored: StoredBundle, shorter: StoredBundle?, go: (StoredBundle) -> Unit) {
        val builder = AlertDialog.Builder(activity)
            .setTitle(activity.words(question.title))
            .setMessage(question.text.joinToString("\n\n") { activity.words(it) })
            .setNegativeButton(R.string.cancel, null)
        question.anyway?.let { builder.setNeutralButton(activity.words(it)) { _, _ -> go(stored) } }
        question.instead?.let { builder.setPositiveButton(activity.words(it)) { _, _ -> go(checkNotNull(shorter)) } }
        dialog = builder.show()
    }
}

/** Load it for the chat; [onLoading] is called when that begins. As the model, it outlives the screen. */
fun DemoApplication.load(stored: StoredBundle, onLoading: () -> Unit) {
    scope.launch {
        val entry = withContext(Dispatchers.IO) { bundles.entryOf(stored) }
        chats.untilRestored()
        if (!chat.state.value.canLoad) return@launch // another load was faster
        if (chat.state.value.messages.isEmpty()) entry?.let { chat.change(it.defaults) }
        preferences.lastBundle = stored.file.path
        chat.load(stored.request(preferences.backends, preferences.mayDraft, cacheDir.path))
        onLoading()
    }
}
