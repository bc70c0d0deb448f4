package org.robolectric.annotation

annotation class Config(val sdk: IntArray = [], val qualifiers: String = "")

annotation class GraphicsMode(val value: Mode) {
    enum class Mode { LEGACY, NATIVE }
}
