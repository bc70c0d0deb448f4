package org.gemmaedge.core.store

import java.io.File
import java.io.IOException
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.bundle.Bundle
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.bundle.Verified
import org.gemmaedge.core.catalogue.Catalogue
import org.gemmaedge.core.catalogue.ModelEntry
import org.gemmaedge.core.chat.Backends
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.transfer.Transfer

/**
 * A bundle on this device. [report] is null where none came with it; [isPushed]: it lies where adb put it;
 * [evidence]: what these very bytes have been held against, null where nobody has looked at them yet.
 */
data class StoredBundle(val bundle: Bundle, val report: BundleReport?, val isPushed: Boolean, val evidence: Evidence?) {
    /** Every byte is what a report, or the bundle's own table, says. What is not may be loaded, but not without a warning. */
    val isVerified: Boolean get() = evidence?.isWhole == true
    val file: File get() = bundle.file
    val name: String get() = file.name.removeSuffix(SUFFIX)

    /** How to load it: [wanted] as far as the bundle has it, with its drafter where [mayDraft] allows. */
    fun request(wanted: Backends, mayDraft: Boolean, cacheDir: String) = LoadRequest(
        file.path,
        wanted.copy(vision = wanted.vision.takeIf { bundle.hasVision }, audio = wanted.audio.takeIf { bundle.hasAudio }),
        cacheDir,
        drafts = mayDraft && bundle.hasDrafter,
    )

    companion object {
        const val SUFFIX = ".litertlm"
    }
}

/** A line of the list of models. */
sealed interface Listed {
    data class Here(val stored: StoredBundle) : Listed

    data class Damaged(val file: File, val message: String, val isPushed: Boolean) : Listed

    /** What an interrupted copy left of [name]; the same import or download goes on from it. */
    data class Unfinished(val file: File) : Listed {
        val name: String get() = file.name.removeSuffix(Transfer.PARTIAL_SUFFIX)
    }

    /** By the catalogue, with an address to download it from. */
    data class Offered(val entry: ModelEntry) : Listed
}

/**
 * The bundles on this device: those that the app brought to [folder], and those that a developer pushed into
 * [pushedFolder], which the app can only read and uses where they are. In [cacheFolder] the engine keeps repacked weights.
 *
 * Functions that touch files are not for the main thread.
 */
class BundleStore(
    val folder: File,
    private val pushedFolder: File,
    private val cacheFolder: File,
    readCatalogue: () -> Catalogue,
) {
    constructor(folder: File, pushedFolder: File, cacheFolder: File, catalogue: Catalogue) :
        this(folder, pushedFolder, cacheFolder, { catalogue })

    /** Read when it is first asked for. */
    private val catalogue by lazy(readCatalogue)
    private val verified = File(folder, "verified.txt")

    /** Bundles by name, then what is not whole, then what the catalogue offers besides. */
    fun list(): List<Listed> {
        val files = listOf(folder, pushedFolder)
            .flatMap { it.listFiles().orEmpty().toList() }
            .filter { it.name.endsWith(StoredBundle.SUFFIX) }
            .sortedBy { it.name }
        val names = files.map { it.name }
        val offered = catalogue.models.filter { it.url != null && it.report.fileName !in names }
        val unfinished = folder.listFiles().orEmpty().filter { it.name.endsWith(Transfer.PARTIAL_SUFFIX) }.sortedBy { it.name }
        return files.map(::listed) + unfinished.map { Listed.Unfinished(it) } + offered.map { Listed.Offered(it) }
    }

    /** Throws [DemoException]: what [Bundle.open] throws, NOT_A_REPORT or STORAGE. */
    fun open(file: File): StoredBundle {
        val bundle = Bundle.open(file)
        val report = reportBeside(file)
            ?: catalogue.models.map { it.report }.find { it.fileName == file.name && it.sizeBytes == bundle.sizeBytes }
        val isPushed = file.parentFile == pushedFolder
        return StoredBundle(bundle, report, isPushed, evidence = marks().find { it.isOf(file, report) }?.evidence)
    }

    /** What the catalogue says about it, if anything. */
    fun entryOf(stored: StoredBundle): ModelEntry? = stored.report?.let { catalogue.find(it.sha256) }

    /** The same model with a shorter context, of those that lie here and [fits] the one that gives up least. */
    fun shorter(than: BundleReport, fits: (BundleReport) -> Boolean): StoredBundle? =
        list()
            .mapNotNull { (it as? Listed.Here)?.stored?.takeIf { stored -> stored.isVerified } }
            .filter { stored ->
                val report = stored.report
                report != null && report.target == than.target && report.contextTokens < than.contextTokens && fits(report)
            }
            .maxByOrNull { it.report!!.contextTokens }

    /** The entry with a file of this name. */
    fun offered(fileName: String): ModelEntry? = catalogue.models.find { it.report.fileName == fileName && it.url != null }

    fun saveReport(bundle: File, text: String) = reportFile(bundle).writeText(text)

    /** Remember that it need not be hashed again before the next load, as long as nobody touches it. */
    fun mark(verified: Verified, report: BundleReport?) {
        val mark = Mark.of(verified.bundle.file, report, verified.evidence)
        val current = marks().filter { it == it.asOfNow() && it.path != mark.path }
        folder.mkdirs()
        this.verified.writeText((current + mark).joinToString("\n"))
    }

    fun deleteReport(bundle: File) = reportFile(bundle).delete()

    /** With its report and with what LiteRT-LM keeps under its name (NAME_TIME_SIZE.xnnpack_cache): it may take a gigabyte. */
    fun delete(bundle: File) {
        bundle.delete()
        deleteReport(bundle)
        cacheFolder.listFiles().orEmpty().filter { it.name.startsWith(bundle.name) }.forEach { it.delete() }
    }

    /** What no copy is to go on from. */
    fun delete(unfinished: Listed.Unfinished) = Transfer(folder).discard(unfinished.name)

    private fun listed(file: File): Listed =
        try {
            Listed.Here(open(file))
        } catch (error: DemoException) {
            Listed.Damaged(file, error.message, isPushed = file.parentFile == pushedFolder)
        }

    private fun reportBeside(bundle: File): BundleReport? =
        try {
            reportFile(bundle).takeIf { it.exists() }?.let { BundleReport.parse(it.readText()) }
        } catch (error: IOException) {
            throw DemoException(Problem.STORAGE, "${bundle.name}.json: cannot read (${error.message}); copy it again", error)
        }

    private fun reportFile(bundle: File) = File(bundle.parentFile, "${bundle.name}.json")

    private fun marks(): List<Mark> = if (verified.exists()) verified.readLines().mapNotNull(Mark::parse) else emptyList()
}

/**
 * One line of verified.txt: a file as it was when it was looked at, and what it was held against: the SHA-256 of a report,
 * or "-", "~" or "?" for the whole of its own table, a part of it, or nothing.
 */
private data class Mark(val sizeBytes: Long, val modifiedMs: Long, val against: String, val path: String) {
    val evidence: Evidence get() = SIGNS.entries.find { it.value == against }?.key ?: Evidence.REPORT

    fun asOfNow() = File(path).let { copy(sizeBytes = it.length(), modifiedMs = it.lastModified()) }

    fun isOf(file: File, report: BundleReport?): Boolean =
        path == file.path && this == asOfNow() && if (report == null) against in SIGNS.values else against == report.sha256

    override fun toString() = "$sizeBytes $modifiedMs $against $path"

    companion object {
        private val SIGNS = mapOf(Evidence.TABLE to "-", Evidence.PART_OF_TABLE to "~", Evidence.NONE to "?")

        fun of(file: File, report: BundleReport?, evidence: Evidence) =
            Mark(0, 0, report?.sha256 ?: SIGNS.getValue(evidence), file.path).asOfNow()

        /** Null for a line that somebody else wrote. */
        fun parse(line: String): Mark? {
            val (size, modified, against, path) = line.split(' ', limit = 4).takeIf { it.size == 4 } ?: return null
            return Mark(size.toLongOrNull() ?: return null, modified.toLongOrNull() ?: return null, against, path)
        }
    }
}
