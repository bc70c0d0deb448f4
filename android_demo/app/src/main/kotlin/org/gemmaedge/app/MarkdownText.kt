package org.gemmaedge.app

import android.graphics.Typeface
import android.text.SpannableStringBuilder
import android.text.Spanned
import android.text.style.BulletSpan
import android.text.style.LeadingMarginSpan
import android.text.style.QuoteSpan
import android.text.style.RelativeSizeSpan
import android.text.style.StyleSpan
import android.text.style.TypefaceSpan
import android.text.style.URLSpan
import org.gemmaedge.core.text.Block
import org.gemmaedge.core.text.Span
import org.gemmaedge.core.text.parseMarkdown

/** Core's Markdown with Android's looks. [indentPixels]: of one level of a list. */
class MarkdownText(private val indentPixels: Int) {
    private val out = SpannableStringBuilder()

    fun of(text: String): CharSequence {
        out.clear()
        for (block in parseMarkdown(text)) {
            if (out.isNotEmpty()) out.append(if (block is Block.Item) "\n" else "\n\n")
            add(block)
        }
        return SpannableStringBuilder(out)
    }

    private fun add(block: Block): Unit = when (block) {
        is Block.Paragraph -> add(block.spans)
        is Block.Heading -> looking(RelativeSizeSpan(if (block.level <= 2) LARGE else 1f), StyleSpan(Typeface.BOLD)) { add(block.spans) }
        is Block.Quote -> looking(QuoteSpan()) { add(block.spans) }
        is Block.Code -> looking(TypefaceSpan("monospace"), LeadingMarginSpan.Standard(indentPixels)) { out.append(block.text) }
        is Block.Item -> item(block)
        is Block.Rule -> out.append("\u2014\u2014\u2014").let { }
    }

    private fun item(item: Block.Item) {
        val indent = LeadingMarginSpan.Standard(indentPixels * (item.depth + 1))
        if (item.label == "-") {
            looking(indent, BulletSpan(indentPixels / 2)) { add(item.spans) }
        } else {
            looking(indent) {
                out.append(item.label).append(' ')
                add(item.spans)
            }
        }
    }

    private fun add(spans: List<Span>): Unit = spans.forEach { span ->
        val looks = listOfNotNull<Any>(
            StyleSpan(Typeface.BOLD).takeIf { span.isBold },
            StyleSpan(Typeface.ITALIC).takeIf { span.isItalic },
            TypefaceSpan("monospace").takeIf { span.isCode },
            span.link?.let(::URLSpan),
        )
        looking(*looks.toTypedArray()) { out.append(span.text) }
    }

    private fun looking(vararg looks: Any, write: () -> Unit) {
        val begin = out.length
        write()
        looks.forEach { out.setSpan(it, begin, out.length, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE) }
    }

    private companion object {
        const val LARGE = 1.2f
    }
}
