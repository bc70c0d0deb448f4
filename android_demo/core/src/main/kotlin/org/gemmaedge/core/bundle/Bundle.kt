package org.gemmaedge.core.bundle

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem

/**
 * A section in its place; offsets count from the start of the file. [sha256] is null where the writer recorded none,
 * [endsIn] the section into which this one goes on, if it does.
 */
data class Section(val name: String, val begin: Long, val end: Long, val sha256: String?, val endsIn: String? = null) {
    val sizeBytes: Long get() = end - begin
}

/**
 * The header of a .litertlm file, found to be sound. No section is read.
 *
 * The layout is described in runtime/formats/litertlm.py, which this file follows check by check; the field numbers are
 * those of LiteRT-LM's schema/core/litertlm_header_schema.fbs.
 */
data class Bundle(val file: File, val sizeBytes: Long, val sections: List<Section>) {
    /** Whether the model takes images. */
    val hasVision: Boolean get() = sections.any { it.name == "tf_lite_vision_encoder" }

    /** Whether the model takes sound. */
    val hasAudio: Boolean get() = sections.any { it.name == "tf_lite_audio_encoder_hw" }

    /** Whether the model has a drafter, for speculative decoding. */
    val hasDrafter: Boolean get() = sections.any { it.name == "tf_lite_mtp_drafter" }

    companion object {
        const val ALIGNMENT_BYTES = 16L shl 10
        private const val MAJOR_VERSION = 1
        private const val PREFIX_BYTES = 32
        private const val LARGEST_HEADER_BYTES = 1L shl 24
        private const val MAGIC = "LITERTLM"
        private const val STRING_VALUE = 9 // VData.StringValue

        // AnySectionDataType, spelled as runtime/formats/litertlm.py does
        private val KINDS = mapOf(
            1 to "generic_binary", 3 to "tflite_model", 4 to "sentencepiece_tokenizer", 5 to "llm_metadata",
            6 to "hugging_face_tokenizer", 7 to "tflite_weights", 8 to "embedding_metadata", 9 to "executor_metadata",
            10 to "tts_metadata", 11 to "asr_metadata",
        )

        /** Throws [DemoException]: NOT_A_BUNDLE, DAMAGED or STORAGE. */
        fun open(file: File): Bundle {
            val header = try {
                RandomAccessFile(file, "r").use { readHeader(it, file.name) }
            } catch (error: IOException) {
                throw DemoException(Problem.STORAGE, "${file.name}: cannot read (${error.message}); copy the file again", error)
            }
            val sections = try {
                parse(header.table)
            } catch (error: CorruptTable) {
                throw DemoException(Problem.DAMAGED, "${file.name}: its section table is corrupt; copy the file again", error)
            }
            checkPlaces(file.name, sections, header.end, header.fileBytes)
            return Bundle(file, header.fileBytes, sections)
        }

        /** [end]: the offset of the first byte after the section table. */
        private class Header(val fileBytes: Long, val end: Long, val table: ByteArray)

        private fun readHeader(input: RandomAccessFile, name: String): Header {
            val sizeBytes = input.length()
            val prefix = ByteArray(PREFIX_BYTES)
            val isBundle = sizeBytes >= PREFIX_BYTES &&
                String(prefix.also(input::readFully), 0, MAGIC.length, Charsets.ISO_8859_1) == MAGIC
            if (!isBundle) {
                throw DemoException(
                    Problem.NOT_A_BUNDLE,
                    "$name: not a .litertlm bundle; choose a file that gemma-edge's convert wrote",
                )
            }
            val version = littleEndian(prefix, 8, 4)
            if (version != MAJOR_VERSION.toLong()) {
                throw DemoException(
                    Problem.NOT_A_BUNDLE,
                    "$name: bundle version $version, expected $MAJOR_VERSION; convert the model again",
                )
            }
            val headerEnd = littleEndian(prefix, 24, 8)
            if (headerEnd > sizeBytes) {
                throw damaged("$name: truncated, its header ends at byte $headerEnd of $sizeBytes")
            }
            if (headerEnd <= PREFIX_BYTES || headerEnd > LARGEST_HEADER_BYTES) {
                throw damaged("$name: its header cannot end at byte $headerEnd")
            }
            return Header(sizeBytes, headerEnd, ByteArray((headerEnd - PREFIX_BYTES).toInt()).also(input::readFully))
        }

        private fun littleEndian(bytes: ByteArray, at: Int, count: Int): Long =
            (count - 1 downTo 0).fold(0L) { value, i -> (value shl 8) or (bytes[at + i].toLong() and 0xFF) }

        private fun parse(table: ByteArray): List<Section> {
            val objects = FlatTable.root(table).table(1)?.tables(0).orEmpty() // section_metadata, objects
            return objects.map { section ->
                val items = section.tables(0).mapNotNull(::textItem).toMap()
                val kind = KINDS[section.byte(3)] ?: throw CorruptTable()
                Section(items["model_type"] ?: kind, section.long(1), section.long(2), items["sha256"], items["ends_in"])
            }
        }

        /** A key and its value where that is text: KeyValuePair(key, value_type, value: StringValue(value)). */
        private fun textItem(pair: FlatTable): Pair<String, String>? {
            if (pair.byte(1) != STRING_VALUE) return null
            return (pair.text(0) ?: return null) to (pair.table(2)?.text(0) ?: return null)
        }

        private fun checkPlaces(name: String, sections: List<Section>, headerEnd: Long, sizeBytes: Long) {
            if (sections.isEmpty()) throw damaged("$name: has no sections")
            var previousEnd = headerEnd
            var endsIn: String? = null // the section that the previous one goes on into: both read one table there
            for (section in sections.sortedBy { it.begin }) {
                val where = "$name: section ${section.name} at bytes ${section.begin} to ${section.end}"
                if (section.end > sizeBytes) throw damaged("$where: truncated, the file has $sizeBytes bytes")
                if (section.begin >= section.end) throw damaged("$where: has no bytes")
                if (section.begin % ALIGNMENT_BYTES != 0L) throw damaged("$where: not aligned to $ALIGNMENT_BYTES bytes")
                val isShared = section.name == endsIn && previousEnd <= section.end
                if (section.begin < previousEnd && !isShared) throw damaged("$where: overlaps what ends at $previousEnd")
                previousEnd = section.end
                endsIn = section.endsIn
            }
        }

        private fun damaged(what: String) = DemoException(Problem.DAMAGED, "$what; copy the file again")
    }
}
