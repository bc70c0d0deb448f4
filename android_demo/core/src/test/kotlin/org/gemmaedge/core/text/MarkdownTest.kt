package org.gemmaedge.core.text

import org.junit.Assert.assertEquals
import org.junit.Test

class MarkdownTest {
    private fun plain(text: String) = listOf(Span(text))

    @Test
    fun `blocks of an answer`() {
        val text = """
            |# Cats
            |A *cat* is an **animal**,
            |not a `dog`.
            |
            |- one
            |  - two
            |1) three
            |> said
            |---
            |```kotlin
            |fun cat() {
            |    purr() // **not bold**
            |}
            |```
            |The end
        """.trimMargin()
        assertEquals(
            listOf(
                Block.Heading(1, plain("Cats")),
                Block.Paragraph(
                    listOf(
                        Span("A "), Span("cat", isItalic = true), Span(" is an "), Span("animal", isBold = true),
                        Span(",\nnot a "), Span("dog", isCode = true), Span("."),
                    ),
                ),
                Block.Item("-", 0, plain("one")),
                Block.Item("-", 1, plain("two")),
                Block.Item("1.", 0, plain("three")),
                Block.Quote(plain("said")),
                Block.Rule,
                Block.Code("kotlin", "fun cat() {\n    purr() // **not bold**\n}", isOpen = false),
                Block.Paragraph(plain("The end")),
            ),
            parseMarkdown(text),
        )
    }

    @Test
    fun `an answer in the making keeps what it has`() {
        assertEquals(listOf(Block.Code("", "x = 1", isOpen = true)), parseMarkdown("```\nx = 1"))
        assertEquals(listOf(Block.Paragraph(plain("so **far"))), parseMarkdown("so **far"))
        assertEquals(listOf(Block.Paragraph(plain("a `b"))), parseMarkdown("a `b"))
        assertEquals(emptyList<Block>(), parseMarkdown(""))
    }

    @Test
    fun `no text is lost, however much of it has come`() {
        val whole = "# A\n\n**b** `c`\n\n```x\ny\n```\n- z"
        fun letters(block: Block): String = when (block) {
            is Block.Paragraph -> block.spans.joinToString("") { it.text }
            is Block.Heading -> block.spans.joinToString("") { it.text }
            is Block.Item -> block.spans.joinToString("") { it.text }
            is Block.Quote -> block.spans.joinToString("") { it.text }
            is Block.Code -> block.language + block.text
            is Block.Rule -> ""
        }
        for (length in 0..whole.length) {
            val part = whole.take(length)
            val shown = parseMarkdown(part).joinToString("") { letters(it) }.filter { it.isLetter() }
            assertEquals(part.filter { it.isLetter() }, shown)
        }
    }

    @Test
    fun `marks that are characters`() {
        for (text in listOf("2 * 3 * 4", "snake_case_name", "a ** b", "<b>html</b>", "5 > 3", "#hash", "[x](javascript:alert)")) {
            assertEquals(listOf(Block.Paragraph(plain(text))), parseMarkdown(text))
        }
        assertEquals(plain("*literal*"), parseSpans("\\*literal\\*"))
    }

    @Test
    fun `links lead to the web, and code keeps its marks`() {
        assertEquals(listOf(Span("see "), Span("this", link = "https://example.org/a")), parseSpans("see [this](https://example.org/a)"))
        assertEquals(listOf(Span("a`b", isCode = true)), parseSpans("``a`b``"))
        val nested = listOf(Span("a ", isBold = true), Span("b", isBold = true, isItalic = true), Span(" c", isBold = true))
        assertEquals(nested, parseSpans("**a *b* c**"))
    }

    @Test
    fun `a fence is closed by its own mark, and may be indented`() {
        assertEquals(listOf(Block.Code("", "```\nx", isOpen = false)), parseMarkdown("~~~\n```\nx\n~~~"))
        assertEquals(listOf(Block.Code("py", "x\n  y", isOpen = false)), parseMarkdown("  ```py\n  x\n    y\n  ```"))
    }
}
