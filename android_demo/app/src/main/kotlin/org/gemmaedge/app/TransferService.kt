package org.gemmaedge.app

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.app.PendingIntent
import android.app.Service
import android.content.Context
import android.content.Intent
import android.content.pm.ServiceInfo
import android.os.Build
import android.os.IBinder
import android.os.PowerManager
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import org.gemmaedge.core.screen.WorkBar
import org.gemmaedge.core.store.Pause
import org.gemmaedge.core.store.WorkState

/**
 * Keeps the process, and while it works the phone, from sleeping while a bundle is brought here. All that is decided is
 * decided by [org.gemmaedge.core.store.BundleWork]; this shows it as a notification and passes on what is tapped.
 */
class TransferService : Service() {
    private val app get() = application as DemoApplication
    private val scope = guardedScope { app.work.pause(Pause.RESTARTED) }
    private val notifications get() = getSystemService(NotificationManager::class.java)
    private var stopWatching = {}
    private val wakeLock by lazy {
        getSystemService(PowerManager::class.java).newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "gemma-edge:transfer")
            .apply { setReferenceCounted(false) }
    }

    override fun onBind(intent: Intent?): IBinder? = null

    override fun onCreate() {
        super.onCreate()
        notifications.createNotificationChannel(
            NotificationChannel(CHANNEL, getString(R.string.channel_transfers), NotificationManager.IMPORTANCE_LOW),
        )
        stopWatching = app.connection.watch(app.work::networkChanged)
        scope.launch {
            app.work.state.collect { state ->
                show(state)
                delay(PAUSE_MS) // a copy reports every 256 KiB
            }
        }
    }

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        when (intent?.action) {
            ACTION_PAUSE -> app.work.pause()
            ACTION_RESUME -> app.work.resume()
            ACTION_USE_METERED -> app.work.allowMetered()
            ACTION_STOP -> app.work.stop()
        }
        toFront(app.work.state.value) // Android wants this within seconds, whatever comes next
        show(app.work.state.value)
        return START_NOT_STICKY // a new process reads the journal
    }

    /** Android 15 and newer: six hours a day are over, and the service has seconds to end. */
    override fun onTimeout(startId: Int, fgsType: Int) {
        app.work.pause(Pause.TIME_LIMIT)
        show(app.work.state.value)
    }

    override fun onDestroy() {
        stopWatching()
        scope.cancel()
        wakeLock.release()
        super.onDestroy()
    }

    private fun show(state: WorkState) {
        // It lapses by itself where nothing moves any more.
        if (state is WorkState.Running) wakeLock.acquire(WAKE_MS) else wakeLock.release()
        if (state.needsProcess) return toFront(state)
        stopForeground(STOP_FOREGROUND_REMOVE)
        val isSilent = state is WorkState.Idle || state is WorkState.Asking
        if (isSilent) notifications.cancel(NOTIFICATION) else notifications.notify(NOTIFICATION, notificationOf(state))
        stopSelf()
    }

    private fun toFront(state: WorkState) {
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
            startForeground(NOTIFICATION, notificationOf(state), ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC)
        } else {
            startForeground(NOTIFICATION, notificationOf(state))
        }
    }

    private fun notificationOf(state: WorkState): Notification {
        val open = PendingIntent.getActivity(this, 0, Intent(this, ModelsActivity::class.java), PendingIntent.FLAG_IMMUTABLE)
        val bar = WorkBar.of(state)
        val builder = Notification.Builder(this, CHANNEL)
            .setSmallIcon(R.drawable.ic_download)
            .setContentTitle(getString(R.string.channel_transfers))
            .setContentText(bar?.let { words(it.text) })
            .setContentIntent(open)
            .setOnlyAlertOnce(true)
            .setOngoing(state.needsProcess)
        if (bar?.isRunning == true) builder.setProgress(WorkBar.PERMILLE, bar.permille ?: 0, bar.permille == null)
        bar?.goOn?.let { builder.addAction(action(words(it), actionOf(state))) }
        if (state is WorkState.Running || state is WorkState.Paused) builder.addAction(action(getString(R.string.stop), ACTION_STOP))
        return builder.build()
    }

    private fun actionOf(state: WorkState): String = when {
        state is WorkState.Running -> ACTION_PAUSE
        (state as? WorkState.Paused)?.reason == Pause.METERED -> ACTION_USE_METERED
        else -> ACTION_RESUME
    }

    private fun action(title: String, action: String): Notification.Action {
        val intent = Intent(this, TransferService::class.java).setAction(action)
        val pending = PendingIntent.getForegroundService(this, 0, intent, PendingIntent.FLAG_IMMUTABLE)
        return Notification.Action.Builder(null, title, pending).build()
    }

    companion object {
        private const val CHANNEL = "transfers"
        private const val NOTIFICATION = 1
        private const val PAUSE_MS = 500L
        private const val WAKE_MS = 60_000L
        private const val ACTION_PAUSE = "pause"
        private const val ACTION_RESUME = "resume"
        private const val ACTION_STOP = "stop"
        private const val ACTION_USE_METERED = "use metered"

        /** Where Android does not allow it, because nobody looks at the app, the work rests until somebody does. */
        fun start(app: DemoApplication) {
            try {
                app.startForegroundService(Intent(app, TransferService::class.java))
            } catch (_: IllegalStateException) {
                app.work.pause(Pause.RESTARTED)
            }
        }

        /** After a restart of the phone: what was interrupted waits, and a tap goes on with it. */
        fun remind(context: Context) {
            val notifications = context.getSystemService(NotificationManager::class.java)
            notifications.createNotificationChannel(
                NotificationChannel(CHANNEL, context.getString(R.string.channel_transfers), NotificationManager.IMPORTANCE_LOW),
            )
            val open = PendingIntent.getActivity(context, 0, Intent(context, ModelsActivity::class.java), PendingIntent.FLAG_IMMUTABLE)
            val notification = Notification.Builder(context, CHANNEL)
                .setSmallIcon(R.drawable.ic_download)
                .setContentTitle(context.getString(R.string.channel_transfers))
                .setContentText(context.getString(R.string.paused_restarted_tap))
                .setContentIntent(open)
                .setAutoCancel(true)
            notifications.notify(NOTIFICATION, notification.build())
        }
    }
}
