package org.gemmaedge.app

import android.app.Activity
import android.app.AlertDialog
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.memory.DeviceMemory
import org.gemmaedge.core.memory.Fit
import org.gemmaedge.core.memory.MemoryVerdict
import org.gemmaedge.core.memory.ProcessMemory
import org.gemmaedge.core.store.StoredBundle

/**
 * The question before a model is loaded: does it fit into memory? What fits is loaded without a word; for all else the
 * numbers are shown, with what can be done.
 */
class LoadPrompt(private val activity: Activity, private val scope: CoroutineScope, private val onLoading: () -> Unit) {
    private val app = activity.application as DemoApplication
    private var dialog: AlertDialog? = null

    fun ask(stored: StoredBundle) {
        if (stored.isVerified) return askForMemory(stored)
        val message = if (stored.evidence == Evidence.PART_OF_TABLE) R.string.unverified_part else R.string.unverified_nothing
        dialog = AlertDialog.Builder(activity)
            .setTitle(R.string.unverified_title)
            .setMessage(activity.getString(message, stored.name))
            .setPositiveButton(R.string.verdict_load_anyway) { _, _ -> askForMemory(stored) }
            .setNegativeButton(R.string.cancel, null)
            .show()
    }

    private fun askForMemory(stored: StoredBundle) {
        val held = ProcessMemory.read()?.anonBytes.takeIf { app.chat.state.value.loaded != null } ?: 0L
        val device = readDeviceMemory(activity, freedBytes = held)
        val report = stored.report ?: return askWithoutReport(stored, device)
        val verdict = MemoryVerdict.of(report.footprint, device)
        if (verdict.fit == Fit.FITS) return load(stored)
        scope.launch {
            val shorter = withContext(Dispatchers.IO) {
                app.bundles.shorter(report) { MemoryVerdict.of(it.footprint, device).fit == Fit.FITS }
            }
            explain(stored, device, verdict, shorter)
        }
    }

    /** The screen goes away. */
    fun dismiss() = dialog?.dismiss()

    private fun askWithoutReport(stored: StoredBundle, device: DeviceMemory) {
        dialog = AlertDialog.Builder(activity)
            .setTitle(R.string.verdict_unknown_title)
            .setMessage(activity.getString(R.string.verdict_unknown, stored.name, formatBytes(device.usableBytes)))
            .setPositiveButton(R.string.verdict_load_anyway) { _, _ -> load(stored) }
            .setNegativeButton(R.string.cancel, null)
            .show()
    }

    /** [shorter]: the same model with a shorter context, on this phone, that fits. */
    private fun explain(stored: StoredBundle, device: DeviceMemory, verdict: MemoryVerdict, shorter: StoredBundle?) {
        val builder = AlertDialog.Builder(activity)
            .setTitle(titleOf(verdict.fit))
            .setMessage(messageOf(stored, device, verdict, shorter))
            .setNegativeButton(R.string.cancel, null)
        if (shorter != null) {
            builder.setPositiveButton(activity.getString(R.string.verdict_use_shorter, shorter.name)) { _, _ -> load(shorter) }
        }
        if (verdict.mayLoad) builder.setNeutralButton(R.string.verdict_load_anyway) { _, _ -> load(stored) }
        dialog = builder.show()
    }

    private fun titleOf(fit: Fit): Int = when (fit) {
        Fit.FITS, Fit.SLOW -> R.string.verdict_slow_title
        Fit.NOT_NOW -> R.string.verdict_not_now_title
        Fit.NEVER -> R.string.verdict_never_title
    }

    private fun messageOf(stored: StoredBundle, device: DeviceMemory, verdict: MemoryVerdict, shorter: StoredBundle?): String {
        val needed = formatBytes(verdict.neededBytes)
        val usable = formatBytes(verdict.usableBytes)
        return listOfNotNull(
            activity.getString(R.string.verdict_low_memory).takeIf { device.isLow },
            when (verdict.fit) {
                Fit.FITS, Fit.SLOW -> activity.getString(R.string.verdict_slow, stored.name, needed, usable)
                Fit.NOT_NOW -> activity.getString(R.string.verdict_not_now, stored.name, needed, usable)
                Fit.NEVER -> activity.getString(R.string.verdict_never, stored.name, needed, formatBytes(device.soldBytes))
            },
            if (shorter == null) {
                verdict.shorterContextTokens?.let { activity.getString(R.string.verdict_convert, it) }
            } else {
                activity.getString(R.string.verdict_shorter, shorter.name, shorter.report?.contextTokens)
            },
        ).joinToString("\n\n")
    }

    private fun load(stored: StoredBundle) {
        val chat = app.chat
        app.scope.launch { // as the model, it outlives the screen
            val entry = withContext(Dispatchers.IO) { app.bundles.entryOf(stored) }
            app.chats.untilRestored()
            if (!chat.state.value.canLoad) return@launch // another load was faster
            if (chat.state.value.messages.isEmpty()) entry?.let { chat.change(it.defaults) }
            chat.load(requestFor(stored))
            onLoading()
        }
    }

    private fun requestFor(stored: StoredBundle): LoadRequest {
        val wanted = app.preferences.backends
        val backends = wanted.copy(
            vision = wanted.vision.takeIf { stored.bundle.hasVision },
            audio = wanted.audio.takeIf { stored.bundle.hasAudio },
        )
        app.preferences.lastBundle = stored.file.path
        return LoadRequest(stored.file.path, backends, app.cacheDir.path)
    }
}
