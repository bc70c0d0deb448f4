package org.gemmaedge.core.store

import java.io.File
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.bundle.Bundle
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.bundle.TrustedKey
import org.gemmaedge.core.bundle.Verified
import org.gemmaedge.core.catalogue.Catalogue
import org.gemmaedge.core.catalogue.ModelEntry
import org.gemmaedge.core.chat.Backends
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.transfer.Transfer

/**
 * A bundle on this device. [report] is null where none came with it; [isPushed]: it lies where adb put it;
 * [evidence]: what these very bytes have been held against, null where nobody has looked at them yet.
 * [signedSha256]: for which a signature of the app's trusted key vouches, null where the app trusts none.
 */
data class StoredBundle(
    val bundle: Bundle,
    val report: BundleReport?,
    val isPushed: Boolean,
    val evidence: Evidence?,
    val signedSha256: String? = null,
) {
    /** Every byte is what a signature, a report, or the bundle's own table, says. What is not may be loaded, but not without a warning. */
    val isVerified: Boolean get() = evidence?.isWhole == true
    val file: File get() = bundle.file
    val name: String get() = file.name.removeSuffix(SUFFIX)

    /**
     * How to load it: [wanted] as far as the bundle has it, with its drafter where [mayDraft] allows.
     *
     * Throws [DemoException], NOT_SIGNED, where a signature is asked for and the file was never held against it.
     */
    fun request(wanted: Backends, mayDraft: Boolean, cacheDir: String): LoadRequest {
        if (signedSha256 != null && evidence != Evidence.SIGNATURE) {
            throw DemoException(Problem.NOT_SIGNED, "${file.name}: not yet held against its signature; tap it in the list of models")
        }
        return LoadRequest(
            file.path,
            wanted.copy(vision = wanted.vision.takeIf { bundle.hasVision }, audio = wanted.audio.takeIf { bundle.hasAudio }),
            cacheDir,
            drafts = mayDraft && bundle.hasDrafter,
        )
    }

    companion object {
        const val SUFFIX = ".litertlm"
    }
}

/** The [text] of a signature of the app's trusted key, and the [sha256] of the bundle that it vouches for. */
data class BundleSignature(val text: String, val sha256: String)

/** A line of the list of models. */
sealed interface Listed {
    data class Here(val stored: StoredBundle) : Listed

    /** What cannot be loaded, whatever [problem] is the reason. */
    data class Damaged(
        val file: File,
        val message: String,
        val isPushed: Boolean,
        val problem: Problem = Problem.DAMAGED,
    ) : Listed

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
 *
 * @param readTrustedKey gives the key by which every bundle has to be signed; null: signatures are not looked at.
 */
class BundleStore(
    val folder: File,
    private val pushedFolder: File,
    private val cacheFolder: File,
    readTrustedKey: () -> TrustedKey? = { null },
    readCatalogue: () -> Catalogue,
) {
    constructor(folder: File, pushedFolder: File, cacheFolder: File, catalogue: Catalogue) :
        this(folder, pushedFolder, cacheFolder, readCatalogue = { catalogue })

    // Read when they are first asked for.
    private val catalogue by lazy(readCatalogue)
    private val trustedKey by lazy(readTrustedKey)
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

    /** Throws [DemoException]: what [Bundle.open] and [signature] throw, NOT_A_REPORT or STORAGE. */
    fun open(file: File): StoredBundle {
        val bundle = Bundle.open(file)
        val report = Sidecar.REPORT.readBeside(file)?.let(BundleReport::parse)
            ?: catalogue.models.map { it.report }.find { it.fileName == file.name && it.sizeBytes == bundle.sizeBytes }
        val isPushed = file.parentFile == pushedFolder
        val signed = signature(file.name, report) { Sidecar.SIGNATURE.readBeside(file) }?.sha256
        val evidence = marks().find { it.isOf(file, signed ?: report?.sha256) }?.evidence
        return StoredBundle(bundle, report, isPushed, if (evidence != null && signed != null) Evidence.SIGNATURE else evidence, signed)
    }

    /**
     * The signature of the bundle [name], which [read] gives, null where there is none; null where the app trusts no key.
     *
     * Throws [DemoException], NOT_SIGNED: there is none, it is not of the app's key, or vouches for another file than [report].
     */
    fun signature(name: String, report: BundleReport?, read: () -> String?): BundleSignature? {
        val key = trustedKey ?: return null
        val text = read() ?: throw DemoException(
            Problem.NOT_SIGNED,
            "$name: found no $name.sig, expected a signature of the key that this app trusts; get it from the maker of the bundle",
        )
        val signed = key.signed(name, text)
        if (report != null && report.sha256 != signed) {
            throw DemoException(
                Problem.NOT_SIGNED,
                "$name.sig: vouches for SHA-256 ${signed.take(SHOWN)}..., the report says ${report.sha256.take(SHOWN)}...; " +
                    "get the bundle with both again from its maker",
            )
        }
        return BundleSignature(text, signed)
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

    fun saveReport(bundle: File, text: String) = Sidecar.REPORT.of(bundle).writeText(text)

    /** Beside the bundle; null: what a former bundle of this name left is deleted. */
    fun saveSignature(bundle: File, signature: BundleSignature?) {
        Sidecar.SIGNATURE.of(bundle).apply { if (signature != null) writeText(signature.text) else delete() }
    }

    /**
     * Remember that it need not be hashed again before the next load, as long as nobody touches it.
     * [report] and [signedSha256]: what it was held against.
     */
    fun mark(verified: Verified, report: BundleReport?, signedSha256: String? = null) {
        val mark = Mark.of(verified.bundle.file, signedSha256 ?: report?.sha256, verified.evidence)
        val current = marks().filter { it == it.asOfNow() && it.path != mark.path }
        folder.mkdirs()
        this.verified.writeText((current + mark).joinToString("\n"))
    }

    fun deleteReport(bundle: File) = Sidecar.REPORT.of(bundle).delete()

    /**
     * With its report, its signature and what LiteRT-LM keeps under its name (NAME_TIME_SIZE.xnnpack_cache): it may take a
     * gigabyte.
     */
    fun delete(bundle: File) {
        bundle.delete()
        deleteReport(bundle)
        saveSignature(bundle, null)
        cacheFolder.listFiles().orEmpty().filter { it.name.startsWith(bundle.name) }.forEach { it.delete() }
    }

    /** What no copy is to go on from. */
    fun delete(unfinished: Listed.Unfinished) = Transfer(folder).discard(unfinished.name)

    private fun listed(file: File): Listed =
        try {
            Listed.Here(open(file))
        } catch (error: DemoException) {
            Listed.Damaged(file, error.message, isPushed = file.parentFile == pushedFolder, error.problem)
        }

    private fun marks(): List<Mark> = if (verified.exists()) verified.readLines().mapNotNull(Mark::parse) else emptyList()

    private companion object {
        const val SHOWN = 16
    }
}

/**
 * One line of verified.txt: a file as it was when it was looked at, and what it was held against: the SHA-256 of a report
 * or a signature, or "-", "~" or "?" for the whole of its own table, a part of it, or nothing.
 */
private data class Mark(val sizeBytes: Long, val modifiedMs: Long, val against: String, val path: String) {
    val evidence: Evidence get() = SIGNS.entries.find { it.value == against }?.key ?: Evidence.REPORT

    fun asOfNow() = File(path).let { copy(sizeBytes = it.length(), modifiedMs = it.lastModified()) }

    /** [sha256]: what the file has to be held against now, null where nothing tells. */
    fun isOf(file: File, sha256: String?): Boolean =
        path == file.path && this == asOfNow() && if (sha256 == null) against in SIGNS.values else against == sha256

    override fun toString() = "$sizeBytes $modifiedMs $against $path"

    companion object {
        private val SIGNS = mapOf(Evidence.TABLE to "-", Evidence.PART_OF_TABLE to "~", Evidence.NONE to "?")

        fun of(file: File, sha256: String?, evidence: Evidence) =
            Mark(0, 0, sha256 ?: SIGNS.getValue(evidence), file.path).asOfNow()

        /** Null for a line that somebody else wrote. */
        fun parse(line: String): Mark? {
            val (size, modified, against, path) = line.split(' ', limit = 4).takeIf { it.size == 4 } ?: return null
            return Mark(size.toLongOrNull() ?: return null, modified.toLongOrNull() ?: return null, against, path)
        }
    }
}
