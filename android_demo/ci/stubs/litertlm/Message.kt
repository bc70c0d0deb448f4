package com.google.ai.edge.litertlm

enum class Role(val value: String) { SYSTEM("system"), USER("user"), MODEL("model"), TOOL("tool") }

data class ToolCall(val name: String, val arguments: Map<String, Any?>)

class Message internal constructor(
    val role: Role,
    val contents: Contents = Contents.empty(),
    val toolCalls: List<ToolCall> = emptyList(),
    val channels: Map<String, String> = emptyMap(),
) {
    companion object {
        fun system(text: String): Message = throw SignatureOnly(text)

        fun system(contents: Contents): Message = throw SignatureOnly("$contents")

        fun user(text: String): Message = throw SignatureOnly(text)

        fun user(contents: Contents): Message = throw SignatureOnly("$contents")

        fun model(text: String): Message = throw SignatureOnly(text)

        fun model(
            contents: Contents = Contents.empty(),
            toolCalls: List<ToolCall> = emptyList(),
            channels: Map<String, String> = emptyMap(),
        ): Message = throw SignatureOnly("$contents $toolCalls $channels")

        fun tool(contents: Contents): Message = throw SignatureOnly("$contents")
    }
}

class Contents private constructor(val contents: List<Content>) {
    companion object {
        internal fun empty(): Contents = throw SignatureOnly()

        fun of(text: String): Contents = throw SignatureOnly(text)

        fun of(vararg contents: Content): Contents = throw SignatureOnly("$contents")

        fun of(contents: List<Content>): Contents = throw SignatureOnly("$contents")
    }
}

sealed class Content {
    data class Text(val text: String) : Content()

    data class ImageBytes(val bytes: ByteArray) : Content()

    data class ImageFile(val absolutePath: String) : Content()

    data class AudioBytes(val bytes: ByteArray) : Content()

    data class AudioFile(val absolutePath: String) : Content()

    data class ToolResponse(val name: String, val response: Any?) : Content()
}
