package org.robolectric.android.controller

import android.app.Activity

class ActivityController<T : Activity> : AutoCloseable {
    fun setup(): ActivityController<T> = throw Error()

    fun get(): T = throw Error()

    override fun close(): Unit = throw Error()
}
