package org.gemmaedge.app

import java.io.File
import java.io.IOException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import org.gemmaedge.core.chat.Attachment

/** [hasFailed]: the last recording did. */
data class DraftState(
    val attachments: List<Attachment> = emptyList(),
    val isRecording: Boolean = false,
    val hasFailed: Boolean = false,
)

/** What goes with the next message besides its text. It outlives the screen: a rotation interrupts no recording. */
class Draft(private val store: AttachmentStore, private val scope: CoroutineScope) {
    private val states = MutableStateFlow(DraftState())
    private var recording: Job? = null
    private var isKept = true // what is being recorded

    val state: StateFlow<DraftState> = states.asStateFlow()

    fun add(added: List<Attachment>) = states.update { it.copy(attachments = it.attachments + added, hasFailed = false) }

    /** Nothing is attached any more. Files stay, a message that was sent may need them; what is being recorded does not. */
    fun clear() {
        isKept = false
        stopRecording()
        states.update { it.copy(attachments = emptyList(), hasFailed = false) }
    }

    /** The permission to record has been granted. */
    fun startRecording() {
        val file = try {
            store.newRecording()
        } catch (_: IOException) { // the storage is full
            return states.update { it.copy(hasFailed = true) }
        }
        isKept = true
        states.update { it.copy(isRecording = true, hasFailed = false) }
        val job = scope.launch {
            try {
                WavRecorder.record(file)
            } catch (_: IOException) {
                isKept = false
                states.update { it.copy(hasFailed = true) }
            }
        }
        // Here, and not in a finally above: it may be stopped before it begins.
        job.invokeOnCompletion { recorded(file) }
        recording = job
    }

    private fun recorded(file: File) {
        states.update { it.copy(isRecording = false) }
        if (isKept && WavRecorder.hasSound(file)) {
            add(listOf(Attachment(Attachment.Kind.AUDIO, file.path)))
        } else {
            file.delete()
        }
    }

    /** What was recorded so far is attached a moment later. */
    fun stopRecording() {
        recording?.cancel()
    }
}
