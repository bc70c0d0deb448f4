package org.gemmaedge.app

import android.app.Application
import android.content.ComponentCallbacks2
import android.os.SystemClock
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.launch
import org.gemmaedge.core.catalogue.Catalogue
import org.gemmaedge.core.chat.ChatController
import org.gemmaedge.core.store.BundleStore
import org.gemmaedge.core.store.BundleWork
import org.gemmaedge.engine.LiteRtChatEngine

/** What outlives every screen: the chat with its engine, the bundles, the work on them. Rotation touches none of it. */
class DemoApplication : Application() {
    val scope: CoroutineScope = MainScope()
    lateinit var preferences: Preferences
        private set
    lateinit var bundles: BundleStore
        private set
    lateinit var work: BundleWork
        private set
    lateinit var attachments: AttachmentStore
        private set
    lateinit var draft: Draft
        private set
    lateinit var chat: ChatController
        private set

    override fun onCreate() {
        super.onCreate()
        preferences = Preferences(getSharedPreferences("demo", MODE_PRIVATE))
        val catalogue = assets.open("catalogue.json").use { Catalogue.parse(it.reader().readText()) }
        bundles = BundleStore(File(filesDir, "models"), PUSHED_FOLDER, cacheDir, catalogue)
        work = BundleWork(bundles, scope)
        attachments = AttachmentStore(this)
        draft = Draft(attachments, scope)
        val saved = SavedChat(File(filesDir, "chat.json"))
        chat = ChatController(LiteRtChatEngine(), scope, SystemClock::elapsedRealtime, saved.read())
        scope.launch { saved.keep(chat.state) }
    }

    /**
     * Give the model back before Android ends the process: it is by far the largest part of it, and the chat stays.
     *
     * UI_HIDDEN only says that the user looks elsewhere. Since Android 14 an app hears of nothing worse than BACKGROUND.
     */
    @Suppress("DEPRECATION") // RUNNING_CRITICAL: what older versions send while the app is in front
    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        val isShort = level == ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL
        if (isShort || level >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND) releaseForMemory()
    }

    override fun onLowMemory() {
        super.onLowMemory()
        releaseForMemory()
    }

    private fun releaseForMemory() {
        if (chat.state.value.loaded != null) chat.release(forMemory = true)
    }

    private companion object {
        /** Where `gemma-edge android push` writes (runtime/android/push.py). */
        val PUSHED_FOLDER = File("/data/local/tmp/gemma-edge")
    }
}
