package org.gemmaedge.app

import android.app.AlertDialog
import android.content.Intent
import android.os.Bundle
import android.view.ContextMenu
import android.view.View
import android.widget.AdapterView.AdapterContextMenuInfo
import android.widget.EditText
import android.widget.ListView
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.prompt.Template
import org.gemmaedge.core.screen.rowOf

/** The prompts to use again: choose one for the next message, write and change them. */
class TemplatesActivity : Screen(R.layout.activity_templates, R.menu.templates) {
    private lateinit var templates: RowsAdapter<Template>

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        templates = RowsAdapter(this, ::rowOf)
        view<ListView>(R.id.templates).apply {
            adapter = templates
            emptyView = this@TemplatesActivity.view(R.id.empty)
            setOnItemClickListener { _, _, position, _ -> choose(templates.getItem(position)) }
            registerForContextMenu(this)
        }
        change {}
    }

    override fun onChosen(id: Int) {
        when (id) {
            R.id.menu_new_template -> edit(null)
        }
    }

    override fun onCreateContextMenu(menu: ContextMenu, view: View, info: ContextMenu.ContextMenuInfo?) {
        val template = templates.getItem((info as AdapterContextMenuInfo).position)
        menu.add(R.string.change).setOnMenuItemClickListener { edit(template) }
        menu.add(R.string.delete).setOnMenuItemClickListener { change { app.templates.delete(template.name) } }
    }

    private fun choose(template: Template) {
        setResult(RESULT_OK, Intent().putExtra(EXTRA_NAME, template.name).putExtra(EXTRA_TEXT, template.text))
        finish()
    }

    private fun edit(former: Template?): Boolean {
        val content = layoutInflater.inflate(R.layout.dialog_template, null)
        val name = content.view<EditText>(R.id.template_name).apply { setText(former?.name) }
        val text = content.view<EditText>(R.id.template_text).apply { setText(former?.text) }
        val dialog = AlertDialog.Builder(this)
            .setTitle(if (former == null) R.string.new_template else R.string.change)
            .setView(content)
            .setPositiveButton(R.string.save, null)
            .setNegativeButton(R.string.cancel, null)
            .show()
        // Set afterwards: the builder's own listener would close the dialog over an empty field.
        dialog.getButton(AlertDialog.BUTTON_POSITIVE).setOnClickListener {
            val empty = listOf(name, text).filter { it.text.isBlank() }
            empty.forEach { it.error = getString(R.string.template_needed) }
            if (empty.isEmpty()) {
                val template = Template(name.text.trim().toString(), text.text.toString())
                change { app.templates.save(template, former?.name) }
                dialog.dismiss()
            }
        }
        return true
    }

    private fun change(action: () -> Unit): Boolean {
        scope.launch {
            templates.show(
                withContext(Dispatchers.IO) {
                    action()
                    app.templates.list()
                },
            )
        }
        return true
    }

    companion object {
        private const val EXTRA_NAME = "name"
        private const val EXTRA_TEXT = "text"

        /** What was chosen; null for nothing. */
        fun chosen(result: Intent?): Template? {
            val name = result?.getStringExtra(EXTRA_NAME) ?: return null
            return Template(name, result.getStringExtra(EXTRA_TEXT) ?: return null)
        }
    }
}
