package org.gemmaedge.app

import android.content.Context
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.TextView
import org.gemmaedge.core.screen.ModelRow
import org.gemmaedge.core.store.Listed

/** The bundles on this phone, and those that the catalogue offers. */
class ModelsAdapter(private val context: Context) : BaseAdapter() {
    private var models: List<Listed> = emptyList()

    fun show(models: List<Listed>) {
        this.models = models
        notifyDataSetChanged()
    }

    override fun getCount(): Int = models.size

    override fun getItem(position: Int): Listed = models[position]

    override fun getItemId(position: Int): Long = position.toLong()

    override fun getView(position: Int, reused: View?, parent: ViewGroup): View {
        val row = reused ?: LayoutInflater.from(context).inflate(R.layout.row_model, parent, false)
        val model = ModelRow.of(models[position])
        row.view<TextView>(R.id.title).text = model.title
        row.view<TextView>(R.id.detail).text = context.words(model.detail)
        return row
    }
}
