package org.gemmaedge.core.screen

import java.io.File
import org.gemmaedge.core.json.Json
import org.junit.Assert.assertEquals

/**
 * Screens as JSON, held against src/test/resources/golden. After a change that is meant, run the tests with the system
 * property gemma.golden set to that folder: it is written anew.
 */
object Golden {
    fun check(name: String, screens: Map<String, Any?>) {
        val found = screens.entries.joinToString(",\n", "{\n", "\n}\n") { (state, screen) -> "\"$state\": ${Json.write(values(screen))}" }
        System.getProperty("gemma.golden")?.let { File(it, "$name.json").writeText(found) }
        val expected = checkNotNull(javaClass.getResourceAsStream("/golden/$name.json")) { "no golden/$name.json" }
        assertEquals(name, expected.use { String(it.readBytes()) }, found)
    }

    private fun values(value: Any?): Any? = when (value) {
        null, is String, is Boolean, is Int, is Long, is Double -> value
        is Phrase -> if (value.values.isEmpty()) value.name else mapOf(value.name to value.values.map(::values))
        is Pair<*, *> -> listOf(values(value.first), values(value.second))
        is List<*> -> value.map(::values)
        is Map<*, *> -> value.entries.associate { "${it.key}" to values(it.value) }
        is Enum<*> -> value.name
        is ChatRow -> mapOf(
            "user" to value.isUser, "text" to value.text, "detail" to values(value.detail), "edit" to value.canEdit,
            "regenerate" to value.canRegenerate,
        )
        is BenchScreen -> mapOf(
            "text" to values(value.text), "figures" to values(value.figures), "running" to value.isRunning, "start" to value.canStart,
            "stop" to value.canStop, "shared" to value.shared,
        )
        is SettingsForm -> listOf(
            value.systemPrompt, value.temperature, value.topK, value.topP, value.seed, value.maxAnswerTokens, value.usesTools,
        )
        is ServerCard -> mapOf("on" to value.isOn, "text" to values(value.text), "copied" to value.copied)
        is LoadQuestion -> mapOf(
            "title" to values(value.title), "text" to values(value.text), "instead" to values(value.instead),
            "anyway" to values(value.anyway),
        )
        is ModelRow -> mapOf("title" to value.title, "detail" to values(value.detail))
        is WorkBar -> mapOf(
            "text" to values(value.text), "running" to value.isRunning, "permille" to value.permille,
            "go_on" to values(value.goOn), "stop" to values(value.stop),
        )
        is ChatScreen -> with(value) {
            mapOf(
                "title" to title, "rows" to values(rows), "empty" to values(empty), "notice" to values(notice),
                "restarts" to noticeRestarts, "status" to values(status), "loading" to isLoading, "load_bar" to showsLoadBar,
                "load_again" to values(loadAgain), "send" to canSend, "stop" to canStop, "begin" to canBegin,
                "release" to canRelease, "images" to takesImages, "sound" to takesSound, "record" to canRecord,
                "recording" to isRecording, "draft" to values(draft), "awake" to staysAwake,
            )
        }
        else -> throw IllegalArgumentException("no JSON of ${value::class.java.name}")
    }
}
