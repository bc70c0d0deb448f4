package org.gemmaedge.core.prompt

import java.io.File
import java.io.IOException
import org.gemmaedge.core.json.Json
import org.gemmaedge.core.json.JsonException

/**
 * The templates on disk, in one file that is replaced whole or not at all. One that cannot be read is kept aside.
 *
 * Functions touch the file: not for the main thread.
 *
 * @param defaults what there is until the user changes something.
 */
class TemplateStore(private val file: File, private val defaults: () -> List<Template>) {
    fun list(): List<Template> {
        if (!file.exists()) return defaults()
        return try {
            Json.parse(file.readText())["templates"].items.map { Template(it["name"].text, it["text"].text) }
        } catch (_: JsonException) {
            keptAside()
        } catch (_: IllegalArgumentException) {
            keptAside()
        }
    }

    /** In the place of the one called [former], or behind all. Throws IOException. */
    fun save(template: Template, former: String? = null) {
        val others = list()
        val place = others.indexOfFirst { it.name == former }.takeIf { it >= 0 } ?: others.indexOfFirst { it.name == template.name }
        write(if (place < 0) others + template else others.mapIndexed { i, it -> if (i == place) template else it })
    }

    fun delete(name: String) = write(list().filterNot { it.name == name })

    private fun write(templates: List<Template>) {
        file.parentFile?.mkdirs()
        val written = File(file.path + ".writing")
        written.writeText(Json.write(mapOf("templates" to templates.map { mapOf("name" to it.name, "text" to it.text) })))
        if (!written.renameTo(file)) throw IOException("${file.name}: cannot be replaced")
    }

    private fun keptAside(): List<Template> {
        val free = generateSequence(1) { it + 1 }.map { File("${file.path}.unreadable-$it") }.first { !it.exists() }
        file.renameTo(free)
        return defaults()
    }
}
