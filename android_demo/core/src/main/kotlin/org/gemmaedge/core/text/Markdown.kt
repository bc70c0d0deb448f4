package org.gemmaedge.core.text

/** A run of characters with one look. [link]: an address, null for text. */
data class Span(
    val text: String,
    val isBold: Boolean = false,
    val isItalic: Boolean = false,
    val isCode: Boolean = false,
    val link: String? = null,
)

/** A part of an answer that stands for itself. */
sealed interface Block {
    data class Paragraph(val spans: List<Span>) : Block

    data class Heading(val level: Int, val spans: List<Span>) : Block

    /** [label]: "-" or "1."; [depth] 0 at the margin. */
    data class Item(val label: String, val depth: Int, val spans: List<Span>) : Block

    data class Quote(val spans: List<Span>) : Block

    /** [language] "" where none is named. [isOpen]: the model has not come to its end yet. */
    data class Code(val language: String, val text: String, val isOpen: Boolean) : Block

    data object Rule : Block
}

/**
 * The Markdown that models write, as blocks: headings, lists, quotes, code, bold, italic, links.
 *
 * Whatever is not recognized stays as it was written: an answer in the making is rarely whole. HTML is text.
 */
fun parseMarkdown(text: String): List<Block> {
    val blocks = mutableListOf<Block>()
    val paragraph = mutableListOf<String>()
    fun endParagraph() {
        if (paragraph.isNotEmpty()) blocks += Block.Paragraph(parseSpans(paragraph.joinToString("\n")))
        paragraph.clear()
    }
    val lines = text.split('\n')
    var at = 0
    while (at < lines.size) {
        val line = lines[at++]
        val fence = FENCE.matchEntire(line)
        val block = when {
            fence != null -> {
                val (indent, marks, language) = fence.destructured
                val begin = at
                while (at < lines.size && !closes(lines[at], marks)) at++
                val isOpen = at >= lines.size
                val code = lines.subList(begin, at).joinToString("\n") { it.removePrefix(indent) }
                at++
                Block.Code(language.trim(), code, isOpen)
            }
            RULE.matches(line) -> Block.Rule
            else -> lineBlock(line)
        }
        if (block != null) {
            endParagraph()
            blocks += block
        } else if (line.isBlank()) {
            endParagraph()
        } else {
            paragraph += line.trim()
        }
    }
    endParagraph()
    return blocks
}

private val FENCE = Regex("""( *)(`{3,}|~{3,})([^`]*)""")
private val RULE = Regex(""" {0,3}([-*_])( *\1){2,} *""")
private val HEADING = Regex(""" {0,3}(#{1,6}) +(.*?)( +#+)? *""")
private val ITEM = Regex("""( *)([-*+]|\d{1,9}[.)]) +(.*)""")
private val QUOTE = Regex(""" {0,3}> ?(.*)""")
private const val SPACES_A_LEVEL = 2

private fun closes(line: String, marks: String) = line.trim().let { it.length >= marks.length && it.all { c -> c == marks[0] } }

private fun lineBlock(line: String): Block? {
    HEADING.matchEntire(line)?.let { return Block.Heading(it.groupValues[1].length, parseSpans(it.groupValues[2])) }
    ITEM.matchEntire(line)?.let { found ->
        val (indent, mark, rest) = found.destructured
        val label = if (mark[0].isDigit()) mark.dropLast(1) + "." else "-"
        return Block.Item(label, indent.length / SPACES_A_LEVEL, parseSpans(rest))
    }
    QUOTE.matchEntire(line)?.let { return Block.Quote(parseSpans(it.groupValues[1])) }
    return null
}

/** One paragraph's looks. A mark without its partner is a character. */
fun parseSpans(text: String): List<Span> = SpanParser(text).parse()

private class SpanParser(private val text: String) {
    private val spans = mutableListOf<Span>()
    private val plain = StringBuilder()
    private var isBold = false
    private var isItalic = false

    fun parse(): List<Span> {
        var at = 0
        while (at < text.length) at = step(at)
        flush()
        return spans
    }

    /** The position after what begins at [at]. */
    private fun step(at: Int): Int {
        val c = text[at]
        if (c == '\\' && at + 1 < text.length && text[at + 1] in ESCAPED) {
            plain.append(text[at + 1])
            return at + 2
        }
        if (c == '`') code(at)?.let { return it }
        if (c == '[') link(at)?.let { return it }
        if (text.startsWith("**", at) && turns(isBold, "**", at)) {
            flush()
            isBold = !isBold
            return at + 2
        }
        if ((c == '*' || (c == '_' && isAtEdge(at))) && !text.startsWith("**", at) && turns(isItalic, c.toString(), at)) {
            flush()
            isItalic = !isItalic
            return at + 1
        }
        plain.append(c)
        return at + 1
    }

    private fun code(at: Int): Int? {
        val marks = text.drop(at).takeWhile { it == '`' }
        val end = text.indexOf(marks, at + marks.length)
        if (end < 0) return null
        flush()
        spans += Span(text.substring(at + marks.length, end).trim(), isBold, isItalic, isCode = true)
        return end + marks.length
    }

    private fun link(at: Int): Int? {
        val found = LINK.matchAt(text, at) ?: return null
        flush()
        spans += Span(found.groupValues[1], isBold, isItalic, link = found.groupValues[2])
        return found.range.last + 1
    }

    /** Whether a mark opens, with something to its right and a partner behind, or closes. */
    private fun turns(isOn: Boolean, mark: String, at: Int): Boolean {
        val after = at + mark.length
        if (isOn) return at > 0 && !text[at - 1].isWhitespace()
        val partner = text.indexOf(mark, after + 1)
        return after < text.length && !text[after].isWhitespace() && partner > 0 && !text[partner - 1].isWhitespace()
    }

    /** An underscore inside a word is part of its name. */
    private fun isAtEdge(at: Int): Boolean {
        val before = text.getOrNull(at - 1)?.isLetterOrDigit() ?: false
        val after = text.getOrNull(at + 1)?.isLetterOrDigit() ?: false
        return !(before && after)
    }

    private fun flush() {
        if (plain.isNotEmpty()) spans += Span(plain.toString(), isBold, isItalic)
        plain.clear()
    }

    private companion object {
        const val ESCAPED = "\\`*_{}[]()#+-.!>~|"

        /** Only addresses that lead to the web: what a model writes is not to open anything else. */
        val LINK = Regex("""\[([^\[\]]+)]\((https?://[^\s()]+)\)""")
    }
}
