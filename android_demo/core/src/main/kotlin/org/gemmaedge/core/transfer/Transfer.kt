package org.gemmaedge.core.transfer

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.delay
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.bundle.Progress
import org.gemmaedge.core.bundle.Verified
import org.gemmaedge.core.bundle.Verifier
import org.gemmaedge.core.formatBytes

/** What a transfer is doing. [progress] is null while the size is unknown. */
data class TransferProgress(val step: Step, val progress: Progress?) {
    enum class Step { COPYING, WAITING_TO_RETRY, VERIFYING }
}

/** How often to try again after the connection was lost without a byte won, and how long to wait before each. */
data class Retries(val attempts: Int = 5, val firstDelayMs: Long = 1_000) {
    init {
        require(attempts >= 0 && firstDelayMs >= 0) { "$attempts retries after $firstDelayMs ms" }
    }

    fun delayMs(attempt: Int): Long = firstDelayMs shl attempt
}

/**
 * Brings a bundle into [folder]: copies, resumes, verifies, and only then gives it its name.
 *
 * Bytes go to NAME.partial, and NAME.partial.source says which bytes they are, so that a later call goes on where an
 * interrupted one stopped; a source that has changed is copied from the start. Cancelling the coroutine keeps both.
 *
 * @param freeBytes what is free in the folder's file system.
 */
class Transfer(
    private val folder: File,
    private val freeBytes: () -> Long = folder::getUsableSpace,
    private val retries: Retries = Retries(),
    private val onProgress: (TransferProgress) -> Unit = {},
) {
    /**
     * The verified bundle [name] in the folder.
     *
     * [report] null: the source must know the size. [signedSha256]: for which a signature vouches, where the app trusts a
     * key. Without both, the bundle is verified against its own table.
     * Throws [DemoException]: NO_SPACE before the first byte; NETWORK when the retries are used up; REFUSED_BY_SERVER,
     * STORAGE; and what [Verifier] throws, after which nothing is kept.
     */
    suspend fun run(source: ByteSource, name: String, report: BundleReport?, signedSha256: String? = null): Verified =
        withContext(Dispatchers.IO) {
            require(name.isNotEmpty() && File(name).name == name) { "a file name, not \"$name\"" }
            folder.mkdirs()
            val partial = partialOf(name)
            copyWithRetries(source, partial, report?.sizeBytes)
            val verified = verify(partial, report, signedSha256)
            ensureActive() // a caller that was stopped will not save the report that belongs to it
            val target = File(folder, name)
            if (!partial.file.renameTo(target)) {
                throw DemoException(Problem.STORAGE, "$name: cannot replace it; remove it and copy again")
            }
            partial.note.delete()
            verified.copy(bundle = verified.bundle.copy(file = target))
        }

    /** Forget what an interrupted transfer left behind. */
    fun discard(name: String) = partialOf(name).delete()

    private fun partialOf(name: String) = File(folder, name + PARTIAL_SUFFIX).let { Partial(it, File("${it.path}.source")) }

    private suspend fun copyWithRetries(source: ByteSource, partial: Partial, expectedBytes: Long?) {
        var failures = 0
        while (true) {
            val before = partial.sizeBytes
            try {
                copy(source, partial, expectedBytes)
                return
            } catch (error: IOException) {
                if (partial.sizeBytes > before) failures = 0 // it moves: patience
                if (failures == retries.attempts) {
                    throw DemoException(
                        Problem.NETWORK,
                        "${source.name}: stopped at ${formatBytes(partial.sizeBytes)} (${error.message}); " +
                            "try again, it goes on from there",
                        error,
                    )
                }
                onProgress(TransferProgress(TransferProgress.Step.WAITING_TO_RETRY, null))
                delay(retries.delayMs(failures++))
            }
        }
    }

    private suspend fun copy(source: ByteSource, partial: Partial, expectedBytes: Long?) {
        if (expectedBytes != null && partial.sizeBytes == expectedBytes) return // an earlier call came to the last byte
        val offset = partial.sizeBytes.takeIf { partial.identity != null } ?: 0
        val identity = partial.identity
        val opened = leavable({ it.close() }) { source.open(offset, identity) }
        try {
            val totalBytes = expectedBytes ?: opened.totalBytes
            if (opened.totalBytes != null && opened.totalBytes != totalBytes) {
                throw DemoException(
                    Problem.NOT_AS_REPORTED,
                    "${source.name}: offers ${opened.totalBytes} bytes, the report says $totalBytes; check the address",
                )
            }
            checkSpace(source.name, opened.offset, totalBytes, partial)
            partial.begin(opened.offset, opened.identity).use { output -> append(opened, output, partial, totalBytes) }
        } finally {
            LEFT_BEHIND.launch { opened.close() } // a stream that is being read cannot be closed before that returns
        }
    }

    private suspend fun append(opened: Opened, output: RandomAccessFile, partial: Partial, totalBytes: Long?) {
        val buffer = ByteArray(CHUNK_BYTES)
        var done = opened.offset
        while (true) {
            currentCoroutineContext().ensureActive()
            val count = leavable { opened.bytes.read(buffer) }
            if (count < 0) break
            partial.writing { output.write(buffer, 0, count) }
            done += count
            val progress = totalBytes?.takeIf { it > 0 }?.let { Progress(minOf(done, it), it) }
            onProgress(TransferProgress(TransferProgress.Step.COPYING, progress))
        }
        if (totalBytes != null && done < totalBytes) throw IOException("the connection ended at byte $done of $totalBytes")
    }

    private fun checkSpace(name: String, offset: Long, totalBytes: Long?, partial: Partial) {
        val missing = (totalBytes ?: return) - offset
        val free = freeBytes() + (partial.sizeBytes - offset) // what will be overwritten
        if (missing + RESERVE_BYTES > free) {
            throw DemoException(
                Problem.NO_SPACE,
                "$name: needs ${formatBytes(missing + RESERVE_BYTES)} of storage, ${formatBytes(free)} is free; " +
                    "free ${formatBytes(missing + RESERVE_BYTES - free)}",
            )
        }
    }

    private fun CoroutineScope.verify(partial: Partial, report: BundleReport?, signedSha256: String?): Verified =
        try {
            val verifier = Verifier { progress ->
                ensureActive()
                onProgress(TransferProgress(TransferProgress.Step.VERIFYING, progress))
            }
            verifier.verify(partial.file, report, signedSha256)
        } catch (error: DemoException) {
            partial.delete() // to go on from wrong bytes would only bring them back
            throw error
        }

    companion object {
        const val PARTIAL_SUFFIX = ".partial"
        private const val CHUNK_BYTES = 1 shl 18
        private val LEFT_BEHIND = CoroutineScope(SupervisorJob() + Dispatchers.IO)

        /**
         * What a blocking call gives. A stalled connection blocks for half a minute; whoever stops does not wait for it.
         * [undo] gets what comes after that.
         */
        private suspend fun <T> leavable(undo: (T) -> Unit = {}, call: () -> T): T {
            val outcome = CompletableDeferred<T>()
            LEFT_BEHIND.launch {
                val result = runCatching(call)
                val isWanted = result.fold(outcome::complete, outcome::completeExceptionally)
                if (!isWanted) result.onSuccess(undo)
            }
            try {
                return outcome.await()
            } catch (error: CancellationException) {
                outcome.cancel()
                throw error
            }
        }
        private const val RESERVE_BYTES = 64L shl 20 // Android degrades badly on a full disk
    }
}

/** The bytes that came so far, and the note that says of what. */
private class Partial(val file: File, val note: File) {
    val sizeBytes: Long get() = file.length()

    /** Null where there is nothing to go on from. */
    val identity: String? get() = note.takeIf { it.exists() && sizeBytes > 0 }?.readText()

    /** Open for bytes from [offset] on; from 0, with nothing of what was. */
    fun begin(offset: Long, identity: String?): RandomAccessFile = writing {
        if (offset == 0L) {
            delete()
            if (identity != null) note.writeText(identity)
        }
        RandomAccessFile(file, "rw").apply {
            setLength(offset)
            seek(offset)
        }
    }

    /** An error here is the storage's and not the connection's: no retry mends it. */
    inline fun <T> writing(action: () -> T): T =
        try {
            action()
        } catch (error: IOException) {
            throw DemoException(Problem.STORAGE, "${file.name}: cannot write (${error.message}); check the storage", error)
        }

    fun delete() {
        file.delete()
        note.delete()
    }
}
