package org.gemmaedge.app

import android.app.Activity
import android.content.ClipData
import android.content.ClipboardManager
import android.os.Build
import android.util.Log
import android.view.View
import android.widget.Toast
import kotlinx.coroutines.CoroutineExceptionHandler
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.plus
import org.gemmaedge.core.chat.Notice

/** Of the main thread. What nobody has caught is told by [onError] and does not end the app. */
fun guardedScope(onError: (Throwable) -> Unit): CoroutineScope = MainScope() + CoroutineExceptionHandler { _, error ->
    Log.e("gemma-edge", "not expected", error)
    onError(error)
}

/** Of a screen. */
fun Activity.screenScope(): CoroutineScope =
    guardedScope { (application as DemoApplication).chat.tell(Notice(Notice.Kind.UNEXPECTED, "$it")) }

/** The view of that id. findViewById became generic with Android 8; spelled so, older and newer SDKs compile it. */
inline fun <reified T : View> Activity.view(id: Int): T {
    val found: View = findViewById(id)
    return found as T
}

inline fun <reified T : View> View.view(id: Int): T {
    val found: View = findViewById(id)
    return found as T
}

fun Activity.copyText(text: String) {
    getSystemService(ClipboardManager::class.java).setPrimaryClip(ClipData.newPlainText(getString(R.string.app_name), text))
    // Android 13 and newer show by themselves what was copied.
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.TIRAMISU) Toast.makeText(this, R.string.copied, Toast.LENGTH_SHORT).show()
}

fun visibleIf(isVisible: Boolean): Int = if (isVisible) View.VISIBLE else View.GONE
