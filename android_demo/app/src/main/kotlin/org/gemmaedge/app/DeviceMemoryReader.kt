package org.gemmaedge.app

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import org.gemmaedge.core.memory.DeviceMemory

/**
 * The phone's memory at this moment.
 *
 * [freedBytes]: what this process gives back before it loads a model, because another one is loaded.
 */
fun readDeviceMemory(context: Context, freedBytes: Long): DeviceMemory {
    val info = ActivityManager.MemoryInfo()
    context.getSystemService(ActivityManager::class.java).getMemoryInfo(info)
    return DeviceMemory(info.availMem + freedBytes, info.threshold, info.totalMem, advertisedBytes(info), info.lowMemory)
}

private fun advertisedBytes(info: ActivityManager.MemoryInfo): Long? =
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.UPSIDE_DOWN_CAKE) null else info.advertisedMem
