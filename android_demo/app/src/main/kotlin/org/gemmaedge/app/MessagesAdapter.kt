package org.gemmaedge.app

import android.content.Context
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.TextView
import org.gemmaedge.core.screen.ChatRow

/** The messages as rows: the user's to the end, the model's to the start. */
class MessagesAdapter(private val context: Context) : BaseAdapter() {
    private val markdown = MarkdownText(context.resources.getDimensionPixelSize(R.dimen.list_indent))
    private var rows: List<ChatRow> = emptyList()

    fun show(rows: List<ChatRow>) {
        if (rows == this.rows) return
        this.rows = rows
        notifyDataSetChanged()
    }

    override fun getCount(): Int = rows.size

    override fun getItem(position: Int): ChatRow = rows[position]

    override fun getItemId(position: Int): Long = position.toLong()

    override fun getViewTypeCount(): Int = 2

    override fun getItemViewType(position: Int): Int = if (rows[position].isUser) 0 else 1

    override fun getView(position: Int, reused: View?, parent: ViewGroup): View {
        val message = rows[position]
        val layout = if (message.isUser) R.layout.row_user else R.layout.row_answer
        val row = reused ?: LayoutInflater.from(context).inflate(layout, parent, false)
        val detail = message.detail.joinToString(". ") { context.words(it) }
        row.view<TextView>(R.id.text).text = if (message.isUser) message.text else markdown.of(message.text)
        row.view<TextView>(R.id.detail).apply {
            text = detail
            visibility = visibleIf(detail.isNotEmpty())
        }
        // Who spoke is told by place and colour; for TalkBack, in words.
        val said = if (message.isUser) R.string.said_by_you else R.string.said_by_model
        row.contentDescription = context.getString(said, listOf(message.text, detail).filter { it.isNotEmpty() }.joinToString(". "))
        return row
    }
}
