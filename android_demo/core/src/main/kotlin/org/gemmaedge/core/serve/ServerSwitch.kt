package org.gemmaedge.core.serve

import java.io.IOException
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow

sealed interface ServerState {
    data object Off : ServerState

    /** [key]: new each time. */
    data class On(val address: String, val key: String) : ServerState

    /** The port is taken. */
    data class Failed(val port: Int, val message: String) : ServerState
}

/** Switches the local server: off at first, and off again with the end of the process. Not for the main thread. */
class ServerSwitch(private val port: Int = PORT, private val handler: Handler) {
    private val states = MutableStateFlow<ServerState>(ServerState.Off)
    private var server: LocalServer? = null

    val state: StateFlow<ServerState> = states.asStateFlow()

    @Synchronized
    fun on() {
        if (server != null) return
        states.value = try {
            val started = LocalServer.start(port, handler).also { server = it }
            ServerState.On(started.address, started.key)
        } catch (error: IOException) {
            ServerState.Failed(port, error.message.orEmpty())
        }
    }

    @Synchronized
    fun off() {
        server?.close()
        server = null
        states.value = ServerState.Off
    }

    companion object {
        /** One, so that `adb forward tcp:8787 tcp:8787` can be typed from memory. */
        const val PORT = 8787
    }
}
