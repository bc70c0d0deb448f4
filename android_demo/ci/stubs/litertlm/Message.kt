package com.google.ai.edge.litertlm

enum class Role(val value: String) { SYSTEM("system"), USER("user"), MODEL("model"), TOOL("tool") }

data class ToolCall(val name: String, val arguments: Map<String, Any?>)

class Message internal constructor(
    val role: Role,
    val contents: Contents,
    val toolCalls: List<ToolCall>,
    val channels: Map<String, String>,
) {
    companion object {
        fun system(text: String): Message = throw SignatureOnly(text)

        fun system(contents: Contents): Message = throw SignatureOnly("$contents")

        fun user(text: String): Message = throw SignatureOnly(text)

        fun user(contents: Contents): Message = throw SignatureOnly("$contents")

        fun model(text: String): Message = throw SignatureOnly(text)

        fun model(
            contents: Contents,
            toolCalls: List<ToolCall> = emptyList(),
            channels: Map<String, String> = emptyMap(),
        ): Message = throw SignatureOnly("$contents $toolCalls $channels")
    }
}

class Contents private constructor(val contents: List<Content>) {
    companion object {
        fun of(text: String): Contents = throw SignatureOnly(text)

        fun of(vararg contents: Content): Contents = throw SignatureOnly("$contents")

        fun of(contents: List<Content>): Contents = throw SignatureOnly("$contents")
    }
}

sealed class Content {
    data class Text(val text: String) : Content()

    class ImageBytes(val bytes: ByteArray) : Content()

    data class ImageFile(val absolutePath: String) : Content()

    class AudioBytes(val bytes: ByteArray) : Content()

    data class AudioFile(val absolutePath: String) : Content()
}
