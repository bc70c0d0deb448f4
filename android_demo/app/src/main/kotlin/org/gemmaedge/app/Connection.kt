package org.gemmaedge.app

import android.content.Context
import android.net.ConnectivityManager
import android.net.NetworkCapabilities
import android.os.Handler
import android.os.Looper
import org.gemmaedge.core.store.Network

/** What the phone is connected to, and when that changes. */
class Connection(context: Context) {
    private val manager = context.getSystemService(ConnectivityManager::class.java)

    fun network(): Network {
        val capabilities = manager.activeNetwork?.let(manager::getNetworkCapabilities)
        return when {
            capabilities?.hasCapability(NetworkCapabilities.NET_CAPABILITY_INTERNET) != true -> Network.NONE
            capabilities.hasCapability(NetworkCapabilities.NET_CAPABILITY_NOT_METERED) -> Network.UNMETERED
            else -> Network.METERED
        }
    }

    /** Calls [onChange] on the main thread until what is returned is called. */
    fun watch(onChange: () -> Unit): () -> Unit {
        val main = Handler(Looper.getMainLooper())
        val callback = object : ConnectivityManager.NetworkCallback() {
            override fun onAvailable(network: android.net.Network) = changed()

            override fun onLost(network: android.net.Network) = changed()

            override fun onCapabilitiesChanged(network: android.net.Network, capabilities: NetworkCapabilities) = changed()

            private fun changed() {
                main.post(onChange)
            }
        }
        manager.registerDefaultNetworkCallback(callback)
        return { manager.unregisterNetworkCallback(callback) }
    }
}
