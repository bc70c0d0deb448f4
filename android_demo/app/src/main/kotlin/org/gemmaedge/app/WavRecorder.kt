package org.gemmaedge.app

import android.Manifest
import android.annotation.SuppressLint
import android.media.AudioFormat
import android.media.AudioRecord
import android.media.MediaRecorder
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.isActive
import kotlinx.coroutines.withContext
import org.gemmaedge.core.chat.Recorder
import org.gemmaedge.core.media.Wav

/** Records what Gemma 3n's audio encoder hears, 16 kHz mono, into a WAV file. */
class WavRecorder(private val store: AttachmentStore) : Recorder {
    override fun newFile(): File = store.newRecording()

    /** The caller has been granted [Manifest.permission.RECORD_AUDIO]. Throws IOException: the microphone gives nothing. */
    override suspend fun record(file: File) = withContext(Dispatchers.IO) {
        val recorder = openMicrophone()
        try {
            RandomAccessFile(file, "rw").use { output ->
                output.write(ByteArray(Wav.HEADER_BYTES))
                val dataBytes = copy(recorder, output)
                output.seek(0)
                output.write(Wav.header(dataBytes, SAMPLES_PER_SECOND))
            }
        } finally {
            recorder.release()
        }
    }

    override fun hasSound(file: File): Boolean = file.length() > Wav.HEADER_BYTES

    @SuppressLint("MissingPermission") // the caller's part
    private fun openMicrophone(): AudioRecord {
        val leastBytes = AudioRecord.getMinBufferSize(SAMPLES_PER_SECOND, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT)
        val recorder = AudioRecord(
            MediaRecorder.AudioSource.VOICE_RECOGNITION,
            SAMPLES_PER_SECOND,
            AudioFormat.CHANNEL_IN_MONO,
            AudioFormat.ENCODING_PCM_16BIT,
            maxOf(leastBytes, SAMPLES_PER_SECOND * Wav.SAMPLE_BYTES),
        )
        if (recorder.state != AudioRecord.STATE_INITIALIZED) {
            recorder.release()
            throw IOException("the microphone cannot be opened")
        }
        try {
            recorder.startRecording()
        } catch (error: IllegalStateException) { // another app has it, or the permission was taken back
            recorder.release()
            throw IOException("the microphone does not start (${error.message})", error)
        }
        return recorder
    }

    /** Bytes written. */
    private suspend fun copy(recorder: AudioRecord, output: RandomAccessFile): Int {
        val buffer = ByteArray(SAMPLES_PER_SECOND * Wav.SAMPLE_BYTES / 10) // a tenth of a second
        val longestBytes = LONGEST_SECONDS * SAMPLES_PER_SECOND * Wav.SAMPLE_BYTES
        var done = 0
        while (done < longestBytes && currentCoroutineContext().isActive) {
            val count = recorder.read(buffer, 0, minOf(buffer.size, longestBytes - done))
            if (count <= 0) throw IOException("the microphone gives no sound ($count)")
            output.write(buffer, 0, count)
            done += count
        }
        return done
    }

    companion object {
        const val LONGEST_SECONDS = 30 // of Gemma 3n's encoder
        private const val SAMPLES_PER_SECOND = 16_000
    }
}
