package org.gemmaedge.core.serve

import org.gemmaedge.core.chat.ChatMessage
import org.gemmaedge.core.chat.ChatSettings
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.chat.SamplerSettings
import org.gemmaedge.core.json.Json
import org.gemmaedge.core.json.JsonException

/** The body of a POST to /v1/chat/completions. What would change the answer and is not understood is refused by name. */
internal class CompletionRequest(
    val settings: ChatSettings,
    val history: List<ChatMessage>,
    val message: ChatMessage,
    val isStreamed: Boolean,
) {
    companion object {
        private val UNDERSTOOD = setOf(
            "model", "messages", "stream", "n", "user", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed",
        )

        /** Throws [HttpProblem]. */
        fun parse(text: String): CompletionRequest =
            try {
                of(Json.parse(text))
            } catch (error: JsonException) {
                throw HttpProblem(400, "invalid_request", error.message.orEmpty())
            } catch (error: IllegalArgumentException) {
                throw HttpProblem(400, "invalid_request", error.message.orEmpty())
            }

        private fun of(json: Json): CompletionRequest {
            (json.names - UNDERSTOOD).find { !json[it].isNull }?.let { throw unsupported("$it is not supported; leave it out") }
            if ((json["n"].optional { int } ?: 1) != 1) throw unsupported("n is ${json["n"].int}, expected 1")
            val messages = json["messages"].items
            val system = messages.takeWhile { it["role"].text in SYSTEM }.map(::textOf)
            val talk = messages.drop(system.size).map { ChatMessage(roleOf(it["role"].text), textOf(it)) }
            require(talk.isNotEmpty()) { "messages: found none of a user, expected one" }
            val roles = talk.indices.map { if (it % 2 == 0) Role.USER else Role.MODEL }
            require(talk.map { it.role } == roles && talk.size % 2 == 1) {
                "messages: expected user and assistant in turn, a user first and last"
            }
            val defaults = SamplerSettings()
            val sampler = SamplerSettings(
                topK = json["top_k"].optional { int } ?: defaults.topK,
                topP = json["top_p"].optional { double } ?: defaults.topP,
                temperature = json["temperature"].optional { double } ?: defaults.temperature,
                seed = json["seed"].optional { int } ?: defaults.seed,
            )
            val longest = json["max_completion_tokens"].optional { int } ?: json["max_tokens"].optional { int }
            return CompletionRequest(
                ChatSettings(system.joinToString("\n\n"), sampler, longest),
                talk.dropLast(1),
                talk.last(),
                json["stream"].optional { boolean } ?: false,
            )
        }

        private fun textOf(message: Json): String {
            val content = message["content"]
            if (content.plain is String) return content.text
            return content.items.joinToString("") { part ->
                if (part["type"].text != "text") throw unsupported("a content of type ${part["type"].text} is not supported")
                part["text"].text
            }
        }

        private fun roleOf(name: String): Role = when (name) {
            "user" -> Role.USER
            "assistant" -> Role.MODEL
            else -> throw unsupported("a message of role $name is not supported here")
        }

        private fun unsupported(what: String) = HttpProblem(400, "unsupported", what)

        private val SYSTEM = setOf("system", "developer")
    }
}
