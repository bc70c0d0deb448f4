package org.gemmaedge.core.chat

import java.io.File
import java.io.IOException
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch

/** A microphone. It may fail in any way at any time: another app takes it, or a phone call. */
interface Recorder {
    /** Where the next recording goes. Throws IOException. */
    fun newFile(): File

    /** Until the coroutine is cancelled, or the longest time is over; the file is complete then. */
    suspend fun record(file: File)

    /** Whether anything was recorded before the end. */
    fun hasSound(file: File): Boolean
}

/** [trouble]: why the last recording failed, in English; null where it did not. */
data class DraftState(
    val attachments: List<Attachment> = emptyList(),
    val isRecording: Boolean = false,
    val trouble: String? = null,
)

/** What goes with the next message besides its text. It outlives the screen: a rotation interrupts no recording. */
class Draft(private val recorder: Recorder, private val scope: CoroutineScope) {
    private val states = MutableStateFlow(DraftState())
    private var recording: Job? = null
    private var isKept = true // what is being recorded

    val state: StateFlow<DraftState> = states.asStateFlow()

    fun add(added: List<Attachment>) = states.update { it.copy(attachments = it.attachments + added, trouble = null) }

    /** Nothing is attached any more. Files stay, a message that was sent may need them; what is being recorded does not. */
    fun clear() {
        isKept = false
        stopRecording()
        states.update { it.copy(attachments = emptyList(), trouble = null) }
    }

    /** The permission to record has been granted. */
    fun startRecording() {
        if (states.value.isRecording) return
        val file = try {
            recorder.newFile()
        } catch (error: IOException) { // the storage is full
            return failed(error)
        }
        isKept = true
        states.update { it.copy(isRecording = true, trouble = null) }
        val job = scope.launch {
            try {
                recorder.record(file)
            } catch (error: CancellationException) {
                throw error
            } catch (error: Exception) { // AudioRecord throws IllegalStateException and SecurityException too
                isKept = false
                failed(error)
            }
        }
        // Here, and not in a finally above: it may be stopped before it begins.
        job.invokeOnCompletion { recorded(file) }
        recording = job
    }

    /** What was recorded so far is attached a moment later. */
    fun stopRecording() {
        recording?.cancel()
    }

    private fun failed(error: Exception) = states.update { it.copy(trouble = error.message ?: error::class.java.simpleName) }

    private fun recorded(file: File) {
        states.update { it.copy(isRecording = false) }
        if (isKept && recorder.hasSound(file)) {
            add(listOf(Attachment(Attachment.Kind.AUDIO, file.path)))
        } else {
            file.delete()
        }
    }
}
