package org.gemmaedge.app

import android.app.AlertDialog
import android.content.Intent
import android.os.Bundle
import android.text.format.DateUtils.getRelativeTimeSpanString
import android.view.ContextMenu
import android.view.View
import android.widget.AdapterView.AdapterContextMenuInfo
import android.widget.EditText
import android.widget.ListView
import android.widget.SearchView
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import org.gemmaedge.core.chat.ChatSummary

/** The chats: search, open, rename, share, delete. */
class ChatsActivity : Screen(R.layout.activity_chats, R.menu.chats) {
    private var searching: Job? = null
    private var query = ""
    private lateinit var chats: RowsAdapter<ChatSummary>

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        chats = RowsAdapter(this) { it.title to getString(R.string.chat_line, getRelativeTimeSpanString(it.changedMs), it.excerpt) }
        view<ListView>(R.id.chats).apply {
            adapter = chats
            emptyView = this@ChatsActivity.view(R.id.empty)
            setOnItemClickListener { _, _, position, _ -> open(chats.getItem(position)) }
            registerForContextMenu(this)
        }
        view<SearchView>(R.id.search).setOnQueryTextListener(object : SearchView.OnQueryTextListener {
            override fun onQueryTextSubmit(text: String) = false

            override fun onQueryTextChange(text: String): Boolean {
                query = text
                list()
                return true
            }
        })
    }

    override suspend fun watch() = list()

    override fun onChosen(id: Int) {
        when (id) {
            R.id.menu_new -> thenFinish { app.chats.begin() }
        }
    }

    override fun onCreateContextMenu(menu: ContextMenu, view: View, info: ContextMenu.ContextMenuInfo?) {
        val chat = chats.getItem((info as AdapterContextMenuInfo).position)
        menu.add(R.string.rename).setOnMenuItemClickListener { rename(chat) }
        menu.add(R.string.share).setOnMenuItemClickListener { share(chat) }
        menu.add(R.string.delete).setOnMenuItemClickListener { delete(chat) }
    }

    private fun list() {
        searching?.cancel()
        searching = scope.launch { chats.show(app.chats.list(query)) }
    }

    private fun open(chat: ChatSummary) = thenFinish { app.chats.open(chat.id) }

    private fun thenFinish(action: suspend () -> Unit) {
        app.scope.launch {
            action()
            finish()
        }
    }

    private fun rename(chat: ChatSummary): Boolean {
        val field = EditText(this).apply {
            setText(chat.title)
            hint = getString(R.string.chat_title)
        }
        AlertDialog.Builder(this)
            .setTitle(R.string.rename)
            .setView(field)
            .setPositiveButton(R.string.save) { _, _ -> changed { app.chats.rename(chat.id, field.text.toString().trim()) } }
            .setNegativeButton(R.string.cancel, null)
            .show()
        return true
    }

    private fun share(chat: ChatSummary): Boolean {
        scope.launch {
            val text = app.chats.export(chat.id) ?: return@launch
            val send = Intent(Intent.ACTION_SEND).setType("text/markdown")
                .putExtra(Intent.EXTRA_TEXT, text)
                .putExtra(Intent.EXTRA_SUBJECT, chat.title)
            startActivity(Intent.createChooser(send, chat.title))
        }
        return true
    }

    private fun delete(chat: ChatSummary): Boolean {
        AlertDialog.Builder(this)
            .setMessage(getString(R.string.delete_chat_question, chat.title))
            .setPositiveButton(R.string.delete) { _, _ -> changed { app.chats.delete(chat.id) } }
            .setNegativeButton(R.string.cancel, null)
            .show()
        return true
    }

    /** To the end, though the screen may go. */
    private fun changed(action: suspend () -> Unit) {
        app.scope.launch {
            action()
            list()
        }
    }
}
