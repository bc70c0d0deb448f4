package org.gemmaedge.app

import android.content.Context
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.TextView

/** Rows of a title and a line of detail: [rowOf] gives the two of a thing. */
class RowsAdapter<T>(private val context: Context, private val rowOf: (T) -> Pair<CharSequence, CharSequence>) : BaseAdapter() {
    private var things: List<T> = emptyList()

    fun show(things: List<T>) {
        this.things = things
        notifyDataSetChanged()
    }

    override fun getCount(): Int = things.size

    override fun getItem(position: Int): T = things[position]

    override fun getItemId(position: Int): Long = position.toLong()

    override fun getView(position: Int, reused: View?, parent: ViewGroup): View {
        val row = reused ?: LayoutInflater.from(context).inflate(R.layout.row, parent, false)
        val (title, detail) = rowOf(things[position])
        row.view<TextView>(R.id.title).text = title
        row.view<TextView>(R.id.detail).text = detail
        return row
    }
}
