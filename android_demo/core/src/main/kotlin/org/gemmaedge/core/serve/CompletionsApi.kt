package org.gemmaedge.core.serve

import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.channels.ClosedReceiveChannelException
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.gemmaedge.core.chat.ChatController
import org.gemmaedge.core.chat.EngineBusy
import org.gemmaedge.core.json.Json

/**
 * `GET /v1/models` and `POST /v1/chat/completions`, streamed or not, as OpenAI's clients speak them, over the model that
 * the app has loaded. One answer at a time; who comes meanwhile is told 503.
 *
 * @param scope the controller's.
 * @param modelName the name of the loaded model, null without one. Called on the controller's thread.
 */
class CompletionsApi(
    private val controller: ChatController,
    private val scope: CoroutineScope,
    private val nowSeconds: () -> Long = { System.currentTimeMillis() / MS_PER_S },
    private val modelName: () -> String?,
) : Handler {
    override fun handle(request: HttpRequest, reply: Reply) {
        when ("${request.method} ${request.path}") {
            "GET /v1/models" -> models(reply)
            "POST /v1/chat/completions" -> completions(CompletionRequest.parse(request.body), reply)
            else -> throw HttpProblem(404, "not_found", "there are GET /v1/models and POST /v1/chat/completions")
        }
    }

    private fun models(reply: Reply) {
        val name = runBlocking { onController { modelName() } }
        val models = listOfNotNull(name).map { mapOf("id" to it, "object" to "model", "created" to 0, "owned_by" to "gemma-edge") }
        reply.json(200, Json.write(mapOf("object" to "list", "data" to models)))
    }

    private fun completions(asked: CompletionRequest, reply: Reply) = runBlocking {
        val model = onController { modelName() } ?: throw HttpProblem(503, "no_model", "no model is loaded; load one in the app")
        val pieces = Channel<String>(Channel.UNLIMITED)
        val answering = scope.launch {
            val outcome = runCatching { controller.answer(asked.settings, asked.history, asked.message) { pieces.trySend(it) } }
            pieces.close(outcome.exceptionOrNull()?.let(::problemOf))
        }
        try {
            // Nothing is promised before the model has begun: what goes wrong until then has a status of its own.
            val first = receive(pieces)
            if (asked.isStreamed) stream(model, first, pieces, reply) else whole(model, first, pieces, reply)
        } finally {
            answering.cancel() // the client may be gone
        }
    }

    private suspend fun whole(model: String, first: String?, pieces: Channel<String>, reply: Reply) {
        val text = StringBuilder(first.orEmpty())
        if (first != null) while (true) text.append(receive(pieces) ?: break)
        val message = mapOf("role" to "assistant", "content" to text.toString())
        val choice = mapOf("index" to 0, "message" to message, "finish_reason" to "stop")
        reply.json(200, Json.write(head(model, "chat.completion") + mapOf("choices" to listOf(choice))))
    }

    private suspend fun stream(model: String, first: String?, pieces: Channel<String>, reply: Reply) {
        fun send(delta: Map<String, String>, reason: String?) {
            val choice = mapOf("index" to 0, "delta" to delta, "finish_reason" to reason)
            reply.event(Json.write(head(model, "chat.completion.chunk") + mapOf("choices" to listOf(choice))))
        }
        reply.stream()
        send(mapOf("role" to "assistant", "content" to first.orEmpty()), null)
        try {
            if (first != null) while (true) send(mapOf("content" to (receive(pieces) ?: break)), null)
            send(emptyMap(), "stop")
            reply.event("[DONE]")
        } catch (problem: HttpProblem) {
            reply.event(LocalServer.problemJson(problem))
        }
    }

    /** Null at the end. */
    private suspend fun receive(pieces: Channel<String>): String? =
        try {
            pieces.receive()
        } catch (_: ClosedReceiveChannelException) {
            null
        }

    private fun head(model: String, kind: String) =
        mapOf("id" to "chatcmpl-0", "object" to kind, "created" to nowSeconds(), "model" to model)

    private fun problemOf(error: Throwable) = when (error) {
        is EngineBusy -> HttpProblem(503, "busy", "${error.message}; try again later")
        else -> HttpProblem(500, "engine_failed", "the model failed: ${error.message?.lineSequence()?.first()}")
    }

    private suspend fun <T> onController(action: () -> T): T {
        val result = Channel<T>(1)
        scope.launch { result.send(action()) }
        return result.receive()
    }

    private companion object {
        const val MS_PER_S = 1000
    }
}
