package org.gemmaedge.core.json

/** The text is not JSON, or a value is missing or of another kind. */
class JsonException(message: String) : Exception(message)

/**
 * A JSON value: [value] is null, Boolean, Long, Double, String, a List or a Map of [Json].
 *
 * Small on purpose. Android's own org.json does not exist on the JVM, where these sources are tested, and a report of
 * some kilobytes does not need a library. [path] names the place in errors: "output.sha256".
 */
class Json private constructor(private val value: Any?, private val path: String) {
    /** Of Kotlin's own types. */
    val plain: Any? get() = value
    val isNull: Boolean get() = value == null
    val text: String get() = expect("text")
    val boolean: Boolean get() = expect("true or false")
    val long: Long get() = expect("an integer")
    val int: Int get() = long.toInt().also { if (it.toLong() != long) fail("an integer of 32 bits") }
    val double: Double get() = (value as? Number ?: fail("a number")).toDouble()
    val items: List<Json> get() = expect<List<Any?>>("a list").mapIndexed { i, item -> Json(item, "$path[$i]") }
    val names: Set<String> get() = expect<Map<String, Any?>>("an object").keys

    /** As JSON, on one line. */
    override fun toString(): String = write(value)

    /** The member of that name; JSON null where there is none. */
    operator fun get(name: String): Json =
        Json(expect<Map<String, Any?>>("an object")[name], if (path.isEmpty()) name else "$path.$name")

    /** Null for JSON null, else what [read] makes of it. */
    fun <T> optional(read: Json.() -> T): T? = if (isNull) null else read()

    private inline fun <reified T> expect(kind: String): T = value as? T ?: fail(kind)

    private fun fail(kind: String): Nothing {
        val found = if (value == null) "nothing" else "\"$value\"".take(LONGEST_QUOTE)
        throw JsonException("${path.ifEmpty { "the whole" }}: found $found, expected $kind")
    }

    companion object {
        private const val LONGEST_QUOTE = 40

        /** Throws [JsonException] with the position of the first character that cannot be. */
        fun parse(text: String): Json = Json(JsonParser(text).document(), "")

        /** Write maps, lists, strings, numbers, booleans and null. */
        fun write(value: Any?): String = StringBuilder().also { write(it, value) }.toString()

        private fun write(out: StringBuilder, value: Any?) {
            when (value) {
                null, is Boolean, is Int, is Long -> out.append(value)
                is Double -> out.append(value.also { require(it.isFinite()) { "JSON has no $it" } })
                is String -> writeText(out, value)
                is List<*> -> {
                    out.append('[')
                    value.forEachIndexed { i, item ->
                        if (i > 0) out.append(',')
                        write(out, item)
                    }
                    out.append(']')
                }
                is Map<*, *> -> {
                    out.append('{')
                    value.entries.forEachIndexed { i, (name, item) ->
                        if (i > 0) out.append(',')
                        writeText(out, name as String)
                        out.append(':')
                        write(out, item)
                    }
                    out.append('}')
                }
                else -> throw IllegalArgumentException("JSON has no ${value::class.java.name}")
            }
        }

        private fun writeText(out: StringBuilder, text: String) {
            out.append('"')
            for (c in text) {
                when {
                    c == '"' || c == '\\' -> out.append('\\').append(c)
                    // U+2028 and U+2029 are legal; other tools have choked on them.
                    c < ' ' || c == '\u2028' || c == '\u2029' -> out.append("\\u").append(c.code.toString(16).padStart(4, '0'))
                    else -> out.append(c)
                }
            }
            out.append('"')
        }
    }
}
