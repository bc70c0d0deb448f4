package org.gemmaedge.app

import android.content.Context
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Matrix
import android.media.ExifInterface
import android.net.Uri
import java.io.File
import java.io.IOException
import org.gemmaedge.core.chat.Attachment
import org.gemmaedge.core.media.isReadableSound

/** An attachment that the engine could not read. */
class UnreadableAttachment(val kind: Attachment.Kind, cause: Throwable? = null) : Exception(kind.name, cause)

/**
 * Images and sound of the chat, as files in the app's own storage in formats that LiteRT-LM reads. What Android grants
 * for a picked document ends with the process; the chat does not.
 *
 * Nothing here is for the main thread, but for [newRecording].
 */
class AttachmentStore(private val context: Context) {
    private val folder by lazy { File(context.filesDir, "attachments").apply { mkdirs() } }

    /** A JPEG of any image that Android can decode, upright, and no larger than an encoder can use. */
    fun addImage(uri: Uri): Attachment = adding(Attachment.Kind.IMAGE, ".jpg") { target ->
        copy(uri, target)
        val upright = upright(decoded(target), target)
        target.outputStream().use { upright.compress(Bitmap.CompressFormat.JPEG, JPEG_QUALITY, it) }
    }

    /** A copy; LiteRT-LM reads WAV, MP3 and FLAC. */
    fun addAudio(uri: Uri): Attachment = adding(Attachment.Kind.AUDIO, ".audio") { target ->
        copy(uri, target)
        if (!isReadableSound(head(target))) throw UnreadableAttachment(Attachment.Kind.AUDIO)
    }

    fun newRecording(): File = File.createTempFile("recording", ".wav", folder)

    private fun adding(kind: Attachment.Kind, suffix: String, write: (File) -> Unit): Attachment {
        val target = File.createTempFile(kind.name.lowercase(), suffix, folder)
        var isWhole = false
        try {
            write(target)
            isWhole = true
            return Attachment(kind, target.path)
        } catch (error: IOException) {
            throw UnreadableAttachment(kind, error)
        } catch (error: RuntimeException) { // from the app that provides the document
            throw UnreadableAttachment(kind, error)
        } finally {
            if (!isWhole) target.delete()
        }
    }

    private fun copy(uri: Uri, target: File) {
        val input = context.contentResolver.openInputStream(uri) ?: throw IOException("nothing at $uri")
        input.use { from -> target.outputStream().use { from.copyTo(it) } }
    }

    /** Halved until the longer side is below twice [LONGEST_SIDE_PIXELS]: a photo of 50 megapixels takes 200 MB. */
    private fun decoded(file: File): Bitmap {
        val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        BitmapFactory.decodeFile(file.path, options)
        options.inSampleSize = Integer.highestOneBit(maxOf(1, maxOf(options.outWidth, options.outHeight) / LONGEST_SIDE_PIXELS))
        options.inJustDecodeBounds = false
        return BitmapFactory.decodeFile(file.path, options) ?: throw UnreadableAttachment(Attachment.Kind.IMAGE)
    }

    /** Cameras store pixels as the sensor lies and note the turn beside them. */
    private fun upright(image: Bitmap, file: File): Bitmap {
        val degrees = when (orientation(file)) {
            ExifInterface.ORIENTATION_ROTATE_90 -> 90f
            ExifInterface.ORIENTATION_ROTATE_180 -> 180f
            ExifInterface.ORIENTATION_ROTATE_270 -> 270f
            else -> return image
        }
        return Bitmap.createBitmap(image, 0, 0, image.width, image.height, Matrix().apply { postRotate(degrees) }, true)
    }

    private fun orientation(file: File): Int =
        try {
            ExifInterface(file.path).getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)
        } catch (_: IOException) {
            ExifInterface.ORIENTATION_NORMAL // a format that has no such note
        }

    private fun head(file: File): ByteArray = file.inputStream().use { input ->
        val head = ByteArray(HEAD_BYTES)
        head.copyOf(maxOf(0, input.read(head)))
    }

    private companion object {
        const val LONGEST_SIDE_PIXELS = 1024 // the vision encoder takes 768 x 768
        const val JPEG_QUALITY = 95
        const val HEAD_BYTES = 4
    }
}
