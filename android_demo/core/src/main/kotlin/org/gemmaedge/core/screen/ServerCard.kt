package org.gemmaedge.core.screen

import org.gemmaedge.core.serve.ServerState

/** The local server's place in the settings. [copied]: what other programs need, for the clipboard. */
data class ServerCard(val isOn: Boolean, val text: Phrase, val copied: String?) {
    companion object {
        fun of(state: ServerState): ServerCard = when (state) {
            is ServerState.Off -> ServerCard(false, phrase("server_off"), null)
            is ServerState.On -> ServerCard(
                true,
                phrase("server_on", state.address, state.key),
                "OPENAI_BASE_URL=${state.address}\nOPENAI_API_KEY=${state.key}",
            )
            is ServerState.Failed -> ServerCard(false, phrase("server_failed", state.port, state.message), null)
        }
    }
}
