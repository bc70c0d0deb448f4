package org.gemmaedge.app

import android.content.Context
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.TextView
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.store.Listed
import org.gemmaedge.core.store.StoredBundle

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
        val listed = models[position]
        row.view<TextView>(R.id.title).text = titleOf(listed)
        row.view<TextView>(R.id.detail).text = detailOf(listed)
        return row
    }

    private fun titleOf(listed: Listed): String = when (listed) {
        is Listed.Here -> listed.stored.name
        is Listed.Damaged -> listed.file.name
        is Listed.Unfinished -> listed.name
        is Listed.Offered -> listed.entry.title
    }

    private fun detailOf(listed: Listed): String = when (listed) {
        is Listed.Here -> {
            val facts = detailOf(listed.stored)
            if (listed.stored.isPushed) context.getString(R.string.model_pushed, facts) else facts
        }
        is Listed.Damaged -> context.getString(R.string.model_damaged, listed.message)
        is Listed.Unfinished -> context.getString(R.string.model_unfinished, formatBytes(listed.file.length()))
        is Listed.Offered -> context.getString(R.string.model_offered, formatBytes(listed.entry.report.sizeBytes))
    }

    private fun detailOf(stored: StoredBundle): String {
        val size = formatBytes(stored.bundle.sizeBytes)
        val inputs = context.inputsOf(stored)
        val report = stored.report ?: return context.getString(R.string.model_detail_unreported, size, inputs)
        val memory = formatBytes(report.footprint.totalBytes)
        val facts = context.getString(R.string.model_detail, size, inputs, report.contextTokens, memory)
        val quality = report.quality ?: return facts
        return context.getString(R.string.model_quality, facts, quality.verdict, quality.meaning)
    }
}
