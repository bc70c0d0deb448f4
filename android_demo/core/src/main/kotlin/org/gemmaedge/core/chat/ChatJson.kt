package org.gemmaedge.core.chat

import org.gemmaedge.core.json.Json
import org.gemmaedge.core.json.JsonException

private const val VERSION = 2

/** What outlives the process: settings and messages. The model does not; [Phase.IDLE] follows. */
fun ChatState.toJson(): String =
    Json.write(
        mapOf(
            "version" to VERSION,
            "id" to id,
            "title" to title,
            "settings" to mapOf(
                "system_prompt" to settings.systemPrompt,
                "top_k" to settings.sampler.topK,
                "top_p" to settings.sampler.topP,
                "temperature" to settings.sampler.temperature,
                "seed" to settings.sampler.seed,
                "max_answer_tokens" to settings.maxAnswerTokens,
                "uses_tools" to settings.usesTools,
            ),
            "messages" to messages.map(::messageValues),
        ),
    )

/**
 * The state to begin with after a process death. An answer that was being written is kept as far as it came, with a
 * notice. Throws [JsonException] for what [toJson] did not write.
 */
fun chatFromJson(text: String): ChatState {
    val json = Json.parse(text)
    if (json["version"].int !in 1..VERSION) throw JsonException("version: found ${json["version"].int}, expected $VERSION")
    val messages = json["messages"].items.map(::message)
    val interrupted = messages.lastOrNull()?.completion == Completion.WRITING
    return ChatState(
        settings = settingsFrom(json["settings"]),
        messages = if (interrupted) messages.dropLast(1) + messages.last().copy(completion = Completion.CANCELLED) else messages,
        notice = if (interrupted) Notice(Notice.Kind.INTERRUPTED) else null,
        id = json["id"].optional { this.text }.orEmpty(), // version 1 knew one chat, without a name
        title = json["title"].optional { this.text },
    )
}

private fun messageValues(message: ChatMessage) = mapOf(
    "role" to message.role.name,
    "text" to message.text,
    "attachments" to message.attachments.map { mapOf("kind" to it.kind.name, "path" to it.path) },
    "completion" to message.completion.name,
    "stats" to message.stats?.let {
        mapOf("tokens" to it.tokens, "first_token_ms" to it.firstTokenMs, "total_ms" to it.totalMs)
    },
    "calls" to message.calls.map { mapOf("name" to it.name, "arguments" to it.arguments, "result" to it.result) },
)

private fun message(json: Json) = ChatMessage(
    role = enum(json["role"]),
    text = json["text"].text,
    attachments = json["attachments"].items.map { Attachment(enum(it["kind"]), it["path"].text) },
    completion = enum(json["completion"]),
    stats = json["stats"].optional { GenerationStats(get("tokens").int, get("first_token_ms").long, get("total_ms").long) },
    calls = json["calls"].optional { items }.orEmpty().map { ToolCall(it["name"].text, it["arguments"].text, it["result"].text) },
)

internal fun settingsFrom(json: Json): ChatSettings =
    try {
        ChatSettings(
            systemPrompt = json["system_prompt"].text,
            sampler = SamplerSettings(json["top_k"].int, json["top_p"].double, json["temperature"].double, json["seed"].int),
            maxAnswerTokens = json["max_answer_tokens"].optional { int },
            usesTools = json["uses_tools"].optional { boolean } ?: false,
        )
    } catch (error: IllegalArgumentException) {
        throw JsonException("settings: ${error.message}")
    }

private inline fun <reified T : Enum<T>> enum(json: Json): T =
    enumValues<T>().find { it.name == json.text } ?: throw JsonException("found \"${json.text}\", expected a ${T::class.java.simpleName}")
