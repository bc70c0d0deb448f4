package org.gemmaedge.app

import android.content.BroadcastReceiver
import android.content.Context
import android.content.Intent
import android.os.Build
import kotlinx.coroutines.launch

/**
 * The phone was restarted. Work that was interrupted goes on: by itself up to Android 14, from the tap of a notification
 * since Android 15, which lets no dataSync service begin from here.
 */
class BootReceiver : BroadcastReceiver() {
    override fun onReceive(context: Context, intent: Intent) {
        if (intent.action != Intent.ACTION_BOOT_COMPLETED) return
        val app = context.applicationContext as DemoApplication
        val pending = goAsync()
        app.scope.launch {
            try {
                app.work.restore()
                if (app.work.shouldGoOn) goOn(app)
            } finally {
                pending.finish()
            }
        }
    }

    private fun goOn(app: DemoApplication) {
        if (Build.VERSION.SDK_INT >= API_NOT_FROM_BOOT) TransferService.remind(app) else app.work.resume()
    }

    private companion object {
        const val API_NOT_FROM_BOOT = 35
    }
}
