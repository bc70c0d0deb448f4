package org.gemmaedge.app

import android.app.Application
import android.content.ComponentCallbacks2
import android.net.Uri
import android.os.SystemClock
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.distinctUntilChanged
import kotlinx.coroutines.flow.map
import kotlinx.coroutines.launch
import org.gemmaedge.core.bench.Bench
import org.gemmaedge.core.bundle.TrustedKey
import org.gemmaedge.core.catalogue.Catalogue
import org.gemmaedge.core.chat.ChatController
import org.gemmaedge.core.chat.ChatStore
import org.gemmaedge.core.chat.Chats
import org.gemmaedge.core.chat.Draft
import org.gemmaedge.core.chat.Notice
import org.gemmaedge.core.memory.MemorySignal
import org.gemmaedge.core.memory.isShort
import org.gemmaedge.core.prompt.Template
import org.gemmaedge.core.prompt.TemplateStore
import org.gemmaedge.core.serve.CompletionsApi
import org.gemmaedge.core.serve.ServerSwitch
import org.gemmaedge.core.store.BundleStore
import org.gemmaedge.core.store.BundleWork
import org.gemmaedge.core.store.WorkJournal
import org.gemmaedge.core.tools.Calculator
import org.gemmaedge.core.tools.Clock
import org.gemmaedge.engine.LiteRtChatEngine

/**
 * What outlives every screen: the chats with their engine, the bundles, the work on them. Rotation touches none of it.
 *
 * Nothing is read or parsed before the first screen is up: whatever lies on disk is read in the background.
 */
class DemoApplication : Application() {
    val scope: CoroutineScope = guardedScope { error -> chat.tell(Notice(Notice.Kind.UNEXPECTED, "$error")) }
    val preferences by lazy { Preferences(getSharedPreferences("demo", MODE_PRIVATE)) }
    val bundles by lazy { BundleStore(File(filesDir, "models"), PUSHED_FOLDER, cacheDir, ::readTrustedKey, ::readCatalogue) }
    val connection by lazy { Connection(this) }
    val work by lazy {
        val journal = WorkJournal(File(filesDir, "models/work.json"))
        BundleWork(bundles, scope, journal, { ContentSource(contentResolver, Uri.parse(it)) }, connection::network)
    }
    val attachments by lazy { AttachmentStore(this) }
    val draft by lazy { Draft(WavRecorder(attachments), scope) }
    val chat: ChatController by lazy {
        ChatController(LiteRtChatEngine(), scope, SystemClock::elapsedRealtime, tools = listOf(Calculator(), Clock()))
    }
    val bench by lazy { Bench(chat, scope) }
    val server by lazy { ServerSwitch(handler = CompletionsApi(chat, scope) { chat.state.value.loaded?.let { File(it.bundlePath).name } }) }
    val templates by lazy { TemplateStore(File(filesDir, "templates.json"), ::firstTemplates) }
    val chats by lazy { Chats(ChatStore(File(filesDir, "chats"), former = File(filesDir, "chat.json")), chat) }

    override fun onCreate() {
        super.onCreate()
        scope.launch { chats.restoreAndKeep() }
        scope.launch {
            work.restore()
            work.state.map { it.needsProcess }.distinctUntilChanged().collect { if (it) TransferService.start(this@DemoApplication) }
        }
    }

    /**
     * Give the model back where memory is short: it is by far the largest part of this process, and the chat stays.
     *
     * UI_HIDDEN only says that the user looks elsewhere. Since Android 14 an app hears of nothing worse than BACKGROUND,
     * which says no more than that either: [isShort] asks for the numbers.
     */
    @Suppress("DEPRECATION") // what versions before Android 14 send
    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        when {
            level == ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL -> releaseIfShort(MemorySignal.CRITICAL)
            level == ComponentCallbacks2.TRIM_MEMORY_BACKGROUND -> releaseIfShort(MemorySignal.BACKGROUND)
            level > ComponentCallbacks2.TRIM_MEMORY_BACKGROUND -> releaseIfShort(MemorySignal.NEXT_TO_BE_ENDED)
        }
    }

    override fun onLowMemory() {
        super.onLowMemory()
        releaseIfShort(MemorySignal.CRITICAL)
    }

    private fun releaseIfShort(signal: MemorySignal) {
        if (chat.state.value.loaded != null && isShort(signal, readDeviceMemory(this, freedBytes = 0))) chat.release(forMemory = true)
    }

    private fun firstTemplates(): List<Template> {
        val texts = resources.getStringArray(R.array.template_texts)
        return resources.getStringArray(R.array.template_names).mapIndexed { i, name -> Template(name, texts[i]) }
    }

    private fun readCatalogue(): Catalogue = assets.open("catalogue.json").use { Catalogue.parse(it.reader().readText()) }

    /** Null where this build of the app has none: it loads what nobody has signed. */
    private fun readTrustedKey(): TrustedKey? {
        if (TRUSTED_KEY !in assets.list("").orEmpty()) return null
        return assets.open(TRUSTED_KEY).use { TrustedKey.parse(it.reader().readText()) }
    }

    private companion object {
        const val TRUSTED_KEY = "trusted_key.pem"

        /** Where `gemma-edge android push` writes (runtime/android/push.py). */
        val PUSHED_FOLDER = File("/data/local/tmp/gemma-edge")
    }
}
