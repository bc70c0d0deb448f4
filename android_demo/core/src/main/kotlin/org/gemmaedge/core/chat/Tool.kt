package org.gemmaedge.core.chat

import org.gemmaedge.core.json.Json

/**
 * Something that a model may call while it answers. It runs on the phone, on a thread of the engine.
 *
 * [description]: a JSON object with "name", "description" and "parameters", as OpenAI and LiteRT-LM describe functions.
 */
interface Tool {
    val name: String
    val description: String

    /** What the model gets to read. What is thrown is told to the model, which may call again. */
    fun run(arguments: Json): String
}

/** A call that was made for an answer. [arguments]: a JSON object, as the model wrote it. */
data class ToolCall(val name: String, val arguments: String, val result: String)

/** Runs a tool for a model. Throws nothing: a model that is told what was wrong can try again. */
fun Tool.answer(arguments: String): String =
    try {
        run(Json.parse(arguments))
    } catch (error: Exception) {
        "error: ${error.message}"
    }
