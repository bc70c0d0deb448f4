package org.gemmaedge.app

import android.Manifest
import android.app.Activity
import android.app.AlertDialog
import android.content.ActivityNotFoundException
import android.content.ClipData
import android.content.Intent
import android.content.pm.PackageManager
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.provider.MediaStore
import android.view.View
import android.widget.EditText
import android.widget.ImageButton
import android.widget.TextView
import android.widget.Toast
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.chat.Attachment
import org.gemmaedge.core.chat.DraftState
import org.gemmaedge.core.chat.Role
import org.gemmaedge.core.screen.ChatScreen
import org.gemmaedge.core.share.Incoming

/** Where the next message is written, spoken and illustrated; its button sends it, or stops the answer. */
class Composer(private val activity: Activity) {
    private val app = activity.application as DemoApplication
    private val input: EditText = activity.view(R.id.input)
    private val send: ImageButton = activity.view(R.id.send)
    private val attachImage: ImageButton = activity.view(R.id.attach_image)
    private val attachAudio: ImageButton = activity.view(R.id.attach_audio)
    private val record: ImageButton = activity.view(R.id.record)
    private val draftBar: View = activity.view(R.id.draft_bar)
    private val draftText: TextView = activity.view(R.id.draft)
    private val hasCamera = activity.packageManager.hasSystemFeature(PackageManager.FEATURE_CAMERA_ANY)
    val hasMicrophone = activity.packageManager.hasSystemFeature(PackageManager.FEATURE_MICROPHONE)

    private var shown: ChatScreen? = null

    /** The place of the question that is being asked in other words. */
    private var editing: Int? = null

    init {
        send.setOnClickListener { sendOrStop() }
        attachImage.setOnClickListener { if (hasCamera) askForPlace() else pickImage() }
        attachAudio.setOnClickListener { pick("audio/*", PICK_AUDIO) }
        record.setOnClickListener { recordOrStop() }
        activity.view<View>(R.id.draft_remove).setOnClickListener { app.draft.clear() }
    }

    fun render(screen: ChatScreen) {
        shown = screen
        send.isEnabled = screen.canStop || screen.canSend
        send.alpha = if (send.isEnabled) 1f else DISABLED_ALPHA
        send.setImageResource(if (screen.canStop) R.drawable.ic_stop else R.drawable.ic_send)
        send.contentDescription = activity.getString(if (screen.canStop) R.string.stop else R.string.send)
        attachImage.visibility = visibleIf(screen.takesImages)
        attachAudio.visibility = visibleIf(screen.takesSound)
        record.visibility = visibleIf(screen.canRecord)
        record.setImageResource(if (screen.isRecording) R.drawable.ic_stop else R.drawable.ic_mic)
        record.contentDescription = activity.getString(if (screen.isRecording) R.string.record_stop else R.string.record)
        val text = screen.draft?.let { activity.words(it) }.orEmpty()
        draftBar.visibility = visibleIf(text.isNotEmpty())
        if (draftText.text.toString() != text) draftText.text = text // TalkBack reads what is set
    }

    /** For after a process death. The text field keeps its text by itself. */
    fun save(out: Bundle) {
        val attachments = app.draft.state.value.attachments
        out.putStringArray(KEY_KINDS, attachments.map { it.kind.name }.toTypedArray())
        out.putStringArray(KEY_PATHS, attachments.map { it.path }.toTypedArray())
    }

    /** The process may have lived on, and the draft with it. */
    fun restore(saved: Bundle) {
        if (app.draft.state.value != DraftState()) return
        val kinds = saved.getStringArray(KEY_KINDS).orEmpty()
        val paths = saved.getStringArray(KEY_PATHS).orEmpty()
        app.draft.add(kinds.zip(paths) { kind, path -> Attachment(Attachment.Kind.valueOf(kind), path) }.filter { File(it.path).exists() })
    }

    fun onResult(request: Int, data: Intent?) {
        when (request) {
            PICK_IMAGE, PICK_AUDIO -> data?.data?.let { attach(it, isImage = request == PICK_IMAGE) }
            TAKE_PHOTO -> attach(CameraProvider.PHOTO, isImage = true) { CameraProvider.fileIn(activity).delete() }
            PICK_TEMPLATE -> TemplatesActivity.chosen(data)?.let { write(it.filled(input.text.toString())) }
        }
    }

    /** What another app has shared. */
    fun attach(shared: Incoming.Files) {
        shared.text?.let(::write)
        for (address in shared.addresses) attach(Uri.parse(address), shared.isImage)
    }

    /** In the place of what stands in the field. */
    fun write(text: String) {
        input.setText(text)
        input.setSelection(input.text.length)
        input.requestFocus()
    }

    /** A copy; [then] comes after it, on a background thread. */
    private fun attach(uri: Uri, isImage: Boolean, then: () -> Unit = {}) {
        app.scope.launch { // as the draft, it outlives the screen
            try {
                val added = withContext(Dispatchers.IO) {
                    try {
                        if (isImage) app.attachments.addImage(uri) else app.attachments.addAudio(uri)
                    } finally {
                        then()
                    }
                }
                app.draft.add(listOf(added))
            } catch (error: UnreadableAttachment) {
                val isPicture = error.kind == Attachment.Kind.IMAGE
                toast(if (isPicture) R.string.attachment_unreadable_image else R.string.attachment_unreadable_audio)
            }
        }
    }

    /** Put a former question into the field; sent, it takes the place of the former and of all that came after. */
    fun edit(place: Int, text: String) {
        editing = place
        write(text)
    }

    fun onMicrophoneAllowed(isAllowed: Boolean) {
        if (isAllowed) app.draft.startRecording() else toast(R.string.record_denied)
    }

    private fun sendOrStop() {
        val chat = app.chat.state.value
        if (chat.canCancel) {
            app.chat.cancel()
        } else if (shown?.canSend == true && chat.canSend) {
            val text = input.text.toString().trim()
            val attachments = app.draft.state.value.attachments
            if (text.isEmpty() && attachments.isEmpty()) return
            val place = editing?.takeIf { chat.messages.getOrNull(it)?.role == Role.USER } // of this chat, as it is now
            if (place == null) app.chat.send(text, attachments) else app.chat.edit(place, text)
            editing = null
            input.text.clear()
            app.draft.clear()
        }
    }

    private fun askForPlace() {
        val places = arrayOf(activity.getString(R.string.image_from_photos), activity.getString(R.string.image_from_camera))
        AlertDialog.Builder(activity)
            .setTitle(R.string.attach_image)
            .setItems(places) { _, place -> if (place == 0) pickImage() else takePhoto() }
            .show()
    }

    /** Android's own photo picker shows all photos and lets this app see the one that is chosen. */
    private fun pickImage() {
        if (Build.VERSION.SDK_INT < Build.VERSION_CODES.TIRAMISU) return pick("image/*", PICK_IMAGE)
        activity.startActivityForResult(Intent(MediaStore.ACTION_PICK_IMAGES).setType("image/*"), PICK_IMAGE)
    }

    /** By the phone's camera app, which needs no permission of ours. */
    private fun takePhoto() {
        CameraProvider.fileIn(activity).delete()
        val intent = Intent(MediaStore.ACTION_IMAGE_CAPTURE)
            .putExtra(MediaStore.EXTRA_OUTPUT, CameraProvider.PHOTO)
            .addFlags(Intent.FLAG_GRANT_WRITE_URI_PERMISSION or Intent.FLAG_GRANT_READ_URI_PERMISSION)
        intent.clipData = ClipData.newRawUri(null, CameraProvider.PHOTO) // the permission goes with it
        try {
            activity.startActivityForResult(intent, TAKE_PHOTO)
        } catch (_: ActivityNotFoundException) {
            toast(R.string.no_camera_app)
        }
    }

    private fun pick(type: String, request: Int) {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType(type)
        activity.startActivityForResult(intent, request)
    }

    private fun recordOrStop() {
        if (app.draft.state.value.isRecording) {
            app.draft.stopRecording()
        } else if (activity.checkSelfPermission(Manifest.permission.RECORD_AUDIO) == PackageManager.PERMISSION_GRANTED) {
            app.draft.startRecording()
        } else {
            activity.requestPermissions(arrayOf(Manifest.permission.RECORD_AUDIO), ASK_MICROPHONE)
        }
    }

    private fun toast(text: Int) = Toast.makeText(activity, text, Toast.LENGTH_LONG).show()

    companion object {
        private const val PICK_IMAGE = 1
        private const val PICK_AUDIO = 2
        private const val TAKE_PHOTO = 4
        const val ASK_MICROPHONE = 3
        const val PICK_TEMPLATE = 5
        private const val KEY_KINDS = "attachment_kinds"
        private const val KEY_PATHS = "attachment_paths"
        private const val DISABLED_ALPHA = 0.4f
    }
}
