package org.gemmaedge.app

import android.app.Activity
import android.os.Build
import android.view.View

/** Show a layout, its toolbar on top. [isBelow]: an arrow in it leads to the screen above. */
fun Activity.showLayout(layout: Int, isBelow: Boolean = true) {
    setContentView(layout)
    setActionBar(view(R.id.toolbar))
    actionBar?.setDisplayHomeAsUpEnabled(isBelow)
    keepClearOfEdges(view(R.id.screen))
}

/** Since Android 15 an app draws below the bars, the keyboard and the display's cut-out. Nothing is to be hidden there. */
@Suppress("DEPRECATION") // the same on each version since 8; WindowInsets.Type is of Android 11
private fun keepClearOfEdges(screen: View) {
    screen.setOnApplyWindowInsetsListener { view, insets ->
        val cutout = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.P) insets.displayCutout else null
        view.setPadding(
            maxOf(insets.systemWindowInsetLeft, cutout?.safeInsetLeft ?: 0),
            maxOf(insets.systemWindowInsetTop, cutout?.safeInsetTop ?: 0),
            maxOf(insets.systemWindowInsetRight, cutout?.safeInsetRight ?: 0),
            maxOf(insets.systemWindowInsetBottom, cutout?.safeInsetBottom ?: 0), // the keyboard counts, with adjustResize
        )
        insets
    }
}
