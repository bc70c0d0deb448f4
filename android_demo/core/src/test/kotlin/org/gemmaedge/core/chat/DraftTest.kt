package org.gemmaedge.core.chat

import java.io.File
import java.io.IOException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class DraftTest {
    @get:Rule val temporary = TemporaryFolder()

    private var failNew: IOException? = null
    private var sound = "sound"
    private var end: suspend () -> Unit = { awaitCancellation() }
    private val recorder = object : Recorder {
        override fun newFile(): File = failNew?.let { throw it } ?: File.createTempFile("recording", ".wav", temporary.root)

        override suspend fun record(file: File) {
            file.writeText(sound)
            end()
        }

        override fun hasSound(file: File) = file.length() > 0
    }

    private fun test(action: suspend CoroutineScope.(Draft) -> Unit) = runBlocking { withTimeout(60_000) { action(Draft(recorder, this)) } }

    private suspend fun Draft.rested() = state.first { !it.isRecording }

    private suspend fun Draft.recording() {
        startRecording()
        while (temporary.root.listFiles()!!.none { it.length() > 0 }) yield()
    }

    @Test
    fun `what was recorded is attached when it is stopped`() = test { draft ->
        draft.startRecording()
        assertTrue(draft.state.value.isRecording)
        draft.startRecording()
        yield()
        draft.stopRecording()
        assertEquals("one recording at a time", 1, draft.state.first { it.attachments.isNotEmpty() }.attachments.size)
        draft.clear()
        assertEquals(DraftState(), draft.state.value)
    }

    @Test
    fun `whatever the microphone throws is a message`() = test { draft ->
        for (error in listOf(IOException("no sound"), IllegalStateException("startRecording() called on an uninitialized AudioRecord"))) {
            end = { throw error }
            draft.startRecording()
            assertEquals(DraftState(trouble = error.message), draft.rested())
        }
        end = { throw SecurityException() }
        draft.startRecording()
        assertEquals("SecurityException", draft.rested().trouble)
        assertEquals("nothing is left", 0, temporary.root.listFiles()!!.size)
        draft.add(listOf(Attachment(Attachment.Kind.IMAGE, "i.jpg")))
        assertNull(draft.state.value.trouble)
    }

    @Test
    fun `a full storage is a message`() = test { draft ->
        failNew = IOException("No space left on device")
        draft.startRecording()
        assertEquals(DraftState(trouble = "No space left on device"), draft.state.value)
    }

    @Test
    fun `a recording of nothing, or one that nobody wants, is gone`() = test { draft ->
        sound = ""
        end = {}
        draft.startRecording()
        assertEquals(DraftState(), draft.rested())
        sound = "sound"
        end = { awaitCancellation() }
        draft.recording()
        draft.clear()
        assertEquals(DraftState(), draft.rested())
        assertFalse(temporary.root.listFiles()!!.any { it.exists() })
    }
}
