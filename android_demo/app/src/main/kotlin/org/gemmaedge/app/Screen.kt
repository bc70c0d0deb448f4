package org.gemmaedge.app

import android.app.Activity
import android.os.Build
import android.os.Bundle
import android.view.Menu
import android.view.MenuItem
import android.view.View
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/** What every screen is: a layout with a toolbar on top, perhaps a menu, and work that ends with it. */
abstract class Screen(private val layout: Int, private val menu: Int? = null) : Activity() {
    protected val app get() = application as DemoApplication
    protected val scope = screenScope()
    private var watching: Job? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(layout)
        setActionBar(view(R.id.toolbar))
        actionBar?.setDisplayHomeAsUpEnabled(parentActivityIntent != null) // an arrow to the screen above
        keepClearOfEdges(view(R.id.screen))
    }

    /** What is shown as long as somebody looks. */
    protected open suspend fun watch() = Unit

    override fun onStart() {
        super.onStart()
        watching = scope.launch { watch() }
    }

    override fun onStop() {
        watching?.cancel()
        super.onStop()
    }

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }

    override fun onCreateOptionsMenu(menu: Menu): Boolean {
        this.menu?.let { menuInflater.inflate(it, menu) }
        return true
    }

    /** A line of the menu was tapped. */
    protected open fun onChosen(id: Int) = Unit

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        if (item.itemId == android.R.id.home) finish() else onChosen(item.itemId)
        return true
    }
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
