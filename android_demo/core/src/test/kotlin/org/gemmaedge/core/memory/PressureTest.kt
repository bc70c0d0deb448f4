package org.gemmaedge.core.memory

import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test

class PressureTest {
    private val roomy = DeviceMemory(3L shl 30, 256L shl 20, 8L shl 30, null, isLow = false)

    @Test
    fun `an app that goes to the background keeps its model while there is room`() {
        assertFalse(isShort(MemorySignal.BACKGROUND, roomy))
        assertTrue(isShort(MemorySignal.BACKGROUND, roomy.copy(isLow = true)))
        assertTrue(isShort(MemorySignal.BACKGROUND, roomy.copy(availableBytes = 400L shl 20)))
    }

    @Test
    fun `what older versions call critical is`() {
        assertTrue(isShort(MemorySignal.CRITICAL, roomy))
        assertTrue(isShort(MemorySignal.NEXT_TO_BE_ENDED, roomy))
    }
}
