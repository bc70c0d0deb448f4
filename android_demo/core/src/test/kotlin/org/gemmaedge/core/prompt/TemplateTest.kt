package org.gemmaedge.core.prompt

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class TemplateTest {
    @get:Rule val folder = TemporaryFolder()

    private val first = Template("Shorter", "Say this in one sentence: {text}")
    private val second = Template("Poem", "Write a poem.")
    private val file get() = File(folder.root, "templates/templates.json")
    private val store get() = TemplateStore(file) { listOf(first, second) }

    @Test
    fun `what was written goes into its place`() {
        assertEquals("Say this in one sentence: long", first.filled("long"))
        assertEquals("Write a poem.", second.filled(" "))
        assertEquals("Write a poem.\n\nOn rain", second.filled("On rain"))
        assertEquals("a and a", Template("Twice", "{text} and {text}").filled("a"))
    }

    @Test
    fun `a template has a name and a text`() {
        assertEquals("a template needs a name", assertThrows(IllegalArgumentException::class.java) { Template(" ", "x") }.message)
        assertEquals("a template needs a text", assertThrows(IllegalArgumentException::class.java) { Template("x", "") }.message)
    }

    @Test
    fun `templates are kept, changed and deleted`() {
        assertEquals(listOf(first, second), store.list())
        val third = Template("Code", "Explain:\n{text}")
        store.save(third)
        assertEquals(listOf(first, second, third), store.list())
        store.save(Template("Verse", "Write a verse."), former = "Poem")
        store.save(Template("Shorter", "Shorten {text}"))
        assertEquals(listOf("Shorter", "Verse", "Code"), store.list().map { it.name })
        assertEquals("Shorten {text}", store.list()[0].text)
        store.delete("Verse")
        store.delete("Shorter")
        store.delete("Code")
        assertEquals(emptyList<Template>(), store.list())
    }

    @Test
    fun `a file that cannot be read is kept aside`() {
        file.parentFile.mkdirs()
        for ((i, text) in listOf("{", "{}", """{"templates":[{"name":"","text":"x"}]}""").withIndex()) {
            file.writeText(text)
            assertEquals(listOf(first, second), store.list())
            assertEquals(text, File("${file.path}.unreadable-${i + 1}").readText())
        }
        store.save(second)
        assertTrue(file.exists())
    }
}
