package org.robolectric.shadows

object ShadowLooper {
    fun idleMainLooper(): Unit = throw Error()
}
