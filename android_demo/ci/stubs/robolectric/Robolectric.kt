package org.robolectric

import android.app.Activity
import android.app.Application
import android.content.Intent
import org.junit.runners.BlockJUnit4ClassRunner
import org.robolectric.android.controller.ActivityController

// Signatures of Robolectric 4.16 without behaviour: the tests of app/ are compiled against them, and never run here.

class RobolectricTestRunner(type: Class<*>) : BlockJUnit4ClassRunner(type)

object Robolectric {
    fun <T : Activity> buildActivity(type: Class<T>, intent: Intent?): ActivityController<T> = throw Error("$type $intent")
}

object RuntimeEnvironment {
    fun getApplication(): Application = throw Error()

    fun setQualifiers(qualifiers: String): Unit = throw Error(qualifiers)

    fun setFontScale(scale: Float): Unit = throw Error("$scale")
}
