package com.google.ai.edge.litertlm

data class ResponseFormat(val type: Type, val schemaOrPattern: String) {
    enum class Type(val value: Int) { REGEX(1), JSON_OBJECT(2) }

    companion object {
        fun json(schema: String): ResponseFormat = throw SignatureOnly(schema)

        fun json(schema: Map<String, Any?>): ResponseFormat = throw SignatureOnly("$schema")

        fun regex(pattern: String): ResponseFormat = throw SignatureOnly(pattern)
    }
}
