package org.gemmaedge.app

import android.content.Context
import android.text.format.DateUtils
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.TextView
import org.gemmaedge.core.chat.ChatSummary

/** The chats, the newest first. */
class ChatsAdapter(private val context: Context) : BaseAdapter() {
    private var chats: List<ChatSummary> = emptyList()

    fun show(chats: List<ChatSummary>) {
        this.chats = chats
        notifyDataSetChanged()
    }

    override fun getCount(): Int = chats.size

    override fun getItem(position: Int): ChatSummary = chats[position]

    override fun getItemId(position: Int): Long = position.toLong()

    override fun getView(position: Int, reused: View?, parent: ViewGroup): View {
        val row = reused ?: LayoutInflater.from(context).inflate(R.layout.row_model, parent, false)
        val chat = chats[position]
        row.view<TextView>(R.id.title).text = chat.title
        val changed = DateUtils.getRelativeTimeSpanString(chat.changedMs)
        row.view<TextView>(R.id.detail).text = context.getString(R.string.chat_line, changed, chat.excerpt)
        return row
    }
}
