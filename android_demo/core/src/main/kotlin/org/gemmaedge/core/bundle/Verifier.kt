package org.gemmaedge.core.bundle

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.security.MessageDigest
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem

/** How far a long operation is. [total] is at least 1. */
data class Progress(val done: Long, val total: Long) {
    val percent: Int get() = (done * 100 / total).toInt()
}

/** What a bundle was held against. */
enum class Evidence {
    /** The SHA-256 that the owner of the app's trusted key has signed, and the report where one came. */
    SIGNATURE,

    /** Size and SHA-256 in the report that convert wrote. */
    REPORT,

    /** The digests in the bundle's own table, one for each section: damage is found, an exchange of the whole file is not. */
    TABLE,

    /** Such digests for some of the sections; nothing is known of the others. */
    PART_OF_TABLE,

    /** Nothing: neither a report nor a digest came with it. */
    NONE,
    ;

    /** Whether every byte of every section is what somebody said it is. */
    val isWhole: Boolean get() = this == SIGNATURE || this == REPORT || this == TABLE
}

/** A bundle in which no fault was found, and what was looked for. */
data class Verified(val bundle: Bundle, val evidence: Evidence)

/**
 * Whether a file is the bundle that convert wrote, to the byte.
 *
 * With a report or a signature, the file's size and SHA-256 decide. Without, each section is held against the digest that the
 * bundle's own table records, where it does: [Evidence] tells how far that goes.
 */
class Verifier(private val onProgress: (Progress) -> Unit = {}) {
    /**
     * [signedSha256]: for which a signature vouches, null where the app trusts no key.
     * Throws [DemoException]: what [Bundle.open] throws, DAMAGED, NOT_AS_REPORTED, NOT_SIGNED or STORAGE.
     */
    fun verify(file: File, report: BundleReport?, signedSha256: String? = null): Verified {
        val bundle = Bundle.open(file)
        val isHashedWhole = report != null || signedSha256 != null
        return Verified(bundle, if (isHashedWhole) verifyWhole(bundle, report, signedSha256) else verifySections(bundle))
    }

    private fun verifyWhole(bundle: Bundle, report: BundleReport?, signedSha256: String?): Evidence {
        val name = bundle.file.name
        if (report != null && bundle.sizeBytes != report.sizeBytes) {
            throw DemoException(
                Problem.NOT_AS_REPORTED,
                "$name: has ${bundle.sizeBytes} bytes, the report says ${report.sizeBytes}; copy the file again",
            )
        }
        val digest = Digests(bundle.file, bundle.sizeBytes).use { it.sha256(0, bundle.sizeBytes) }
        if (report != null && digest != report.sha256) {
            throw DemoException(
                Problem.NOT_AS_REPORTED,
                "$name: has SHA-256 ${digest.take(SHOWN)}..., the report says ${report.sha256.take(SHOWN)}...; copy the file again",
            )
        }
        if (signedSha256 == null) return Evidence.REPORT
        if (digest != signedSha256) {
            throw DemoException(
                Problem.NOT_SIGNED,
                "$name: has SHA-256 ${digest.take(SHOWN)}..., the signature vouches for ${signedSha256.take(SHOWN)}...; " +
                    "get the bundle and its .sig again from its maker",
            )
        }
        return Evidence.SIGNATURE
    }

    private fun verifySections(bundle: Bundle): Evidence {
        val recorded = bundle.sections.filter { it.sha256 != null }
        Digests(bundle.file, recorded.sumOf { it.sizeBytes }).use { digests ->
            for (section in recorded) {
                val digest = digests.sha256(section.begin, section.end)
                if (digest != section.sha256) {
                    throw DemoException(
                        Problem.DAMAGED,
                        "${bundle.file.name}: section ${section.name} has SHA-256 ${digest.take(SHOWN)}..., " +
                            "the table records ${section.sha256!!.take(SHOWN)}...; copy the file again",
                    )
                }
            }
        }
        return when (recorded.size) {
            bundle.sections.size -> Evidence.TABLE
            0 -> Evidence.NONE
            else -> Evidence.PART_OF_TABLE
        }
    }

    private inner class Digests(private val file: File, private val totalBytes: Long) : AutoCloseable {
        private val input = guarded { RandomAccessFile(file, "r") }
        private val buffer = ByteArray(CHUNK_BYTES)
        private var doneBytes = 0L

        /** Of the bytes from [begin] to [end], in lower-case hexadecimal. */
        fun sha256(begin: Long, end: Long): String = guarded {
            val digest = MessageDigest.getInstance("SHA-256")
            input.seek(begin)
            var left = end - begin
            while (left > 0) {
                val count = input.read(buffer, 0, minOf(left, buffer.size.toLong()).toInt())
                if (count < 0) throw IOException("ends early")
                digest.update(buffer, 0, count)
                left -= count
                doneBytes += count
                onProgress(Progress(doneBytes, totalBytes))
            }
            digest.digest().joinToString("") { "%02x".format(it) }
        }

        override fun close() = input.close()

        private fun <T> guarded(action: () -> T): T =
            try {
                action()
            } catch (error: IOException) {
                throw DemoException(Problem.STORAGE, "${file.name}: cannot read (${error.message}); copy the file again", error)
            }
    }

    private companion object {
        const val CHUNK_BYTES = 1 shl 20
        const val SHOWN = 16
    }
}
