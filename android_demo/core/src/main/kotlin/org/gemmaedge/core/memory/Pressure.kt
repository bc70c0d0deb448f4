package org.gemmaedge.core.memory

/** What Android says to an app about memory. */
enum class MemorySignal {
    /** TRIM_MEMORY_BACKGROUND: the app is no longer in front. Since Android 14 it says nothing about memory. */
    BACKGROUND,

    /** TRIM_MEMORY_MODERATE and COMPLETE, before Android 14: background processes are being ended, this one among the next. */
    NEXT_TO_BE_ENDED,

    /** TRIM_MEMORY_RUNNING_CRITICAL, before Android 14, and onLowMemory: short while the app is in front. */
    CRITICAL,
}

/**
 * Whether to give a model back.
 *
 * It is kept while it is cheap: what it maps from its file the kernel can take at any time without asking, and a model
 * that was unloaded for nothing takes seconds to load again. In the background it goes only where memory is short at this
 * moment. An app that keeps too much is ended, which the chat survives.
 */
fun isShort(signal: MemorySignal, device: DeviceMemory): Boolean = when (signal) {
    MemorySignal.CRITICAL, MemorySignal.NEXT_TO_BE_ENDED -> true
    MemorySignal.BACKGROUND -> device.isLow || device.usableBytes < device.thresholdBytes
}
