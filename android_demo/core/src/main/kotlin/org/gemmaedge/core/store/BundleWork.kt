package org.gemmaedge.core.store

import java.io.IOException
import java.net.URL
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.bundle.Bundle
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.bundle.Verifier
import org.gemmaedge.core.catalogue.ModelEntry
import org.gemmaedge.core.transfer.ByteSource
import org.gemmaedge.core.transfer.HttpSource
import org.gemmaedge.core.transfer.Transfer
import org.gemmaedge.core.transfer.TransferProgress

/** What the one long operation on bundles is doing: an import, a download or a verification. */
sealed interface WorkState {
    data object Idle : WorkState

    /** [progress] is null until the first byte. */
    data class Running(val name: String, val progress: TransferProgress?) : WorkState

    /** [wasHere]: it has not come just now; it was verified because somebody wants to load it. */
    data class Done(val stored: StoredBundle, val wasHere: Boolean) : WorkState

    data class Failed(val error: DemoException) : WorkState
}

/**
 * Brings bundles here and verifies them, one at a time. Screens may come and go meanwhile.
 *
 * Stopping keeps what has arrived; the same import or download goes on from there. All functions belong to the main
 * thread.
 */
class BundleWork(private val store: BundleStore, private val scope: CoroutineScope) {
    private val states = MutableStateFlow<WorkState>(WorkState.Idle)
    private var work: Job? = null

    val state: StateFlow<WorkState> = states.asStateFlow()
    val isRunning: Boolean get() = states.value is WorkState.Running

    /** Copy a document that the user picked. [report]: the document beside it, if one was picked too. */
    fun copyHere(source: ByteSource, report: ByteSource?) = bring(source) { report?.let(::readText) }

    /** Download; the report is asked for at the same address with .json added. */
    fun download(url: URL) = bring(HttpSource(url)) { fetchReport(url) }

    /** Download what the catalogue offers; its report is part of the catalogue. */
    fun download(entry: ModelEntry) = start(entry.report.fileName) {
        val source = HttpSource(checkNotNull(entry.url))
        arrived(transfer(entry.report.fileName).run(source, entry.report.fileName, entry.report), entry.report, text = null)
    }

    /** Hash a bundle that came by another way than this app, such as adb. */
    fun verify(stored: StoredBundle) = start(stored.file.name) {
        withContext(Dispatchers.IO) {
            val verifier = Verifier { progress ->
                ensureActive()
                progressed(stored.file.name, TransferProgress(TransferProgress.Step.VERIFYING, progress))
            }
            store.markVerified(verifier.verify(stored.file, stored.report), stored.report)
            WorkState.Done(store.open(stored.file), wasHere = true)
        }
    }

    fun stop() {
        work?.cancel()
    }

    /** The outcome has been shown. */
    fun seen() {
        if (!isRunning) states.value = WorkState.Idle
    }

    private fun bring(source: ByteSource, readReport: () -> String?) {
        val name = bundleName(source.name)
        start(name) {
            val text = withContext(Dispatchers.IO) { readReport() }
            val report = text?.let(BundleReport::parse)
            arrived(transfer(name).run(source, name, report), report, text)
        }
    }

    /** [text]: of the report, where it is to be kept. One that a former bundle of this name left behind is not. */
    private suspend fun arrived(bundle: Bundle, report: BundleReport?, text: String?): WorkState =
        withContext(Dispatchers.IO) {
            if (text != null) store.saveReport(bundle.file, text) else store.deleteReport(bundle.file)
            store.markVerified(bundle, report)
            WorkState.Done(store.open(bundle.file), wasHere = false)
        }

    private fun transfer(name: String) = Transfer(store.folder) { progressed(name, it) }

    private fun start(name: String, action: suspend () -> WorkState) {
        check(!isRunning) { "one at a time" }
        states.value = WorkState.Running(name, null)
        val job = scope.launch {
            states.value = try {
                action()
            } catch (error: DemoException) {
                WorkState.Failed(error)
            } catch (error: IOException) {
                val message = "$name: cannot be read or written (${error.message}); try again"
                WorkState.Failed(DemoException(Problem.STORAGE, message, error))
            }
        }
        // Here, and not in a catch above: it may be stopped before it begins.
        job.invokeOnCompletion { cause -> if (cause is CancellationException) states.value = WorkState.Idle }
        work = job
    }

    /** Called from the threads that copy and hash. */
    private fun progressed(name: String, progress: TransferProgress) {
        states.value = WorkState.Running(name, progress)
    }

    private companion object {
        const val LONGEST_REPORT_CHARS = 1 shl 20

        fun bundleName(name: String) = if (name.endsWith(StoredBundle.SUFFIX)) name else name + StoredBundle.SUFFIX

        fun readText(source: ByteSource): String = source.open(0, null).use { opened ->
            val text = opened.bytes.reader()
            val buffer = CharArray(LONGEST_REPORT_CHARS + 1)
            var length = 0
            while (length < buffer.size) {
                val count = text.read(buffer, length, buffer.size - length)
                if (count < 0) return@use String(buffer, 0, length)
                length += count
            }
            throw DemoException(
                Problem.NOT_A_REPORT,
                "${source.name}: longer than any report; choose the .json file that convert wrote",
            )
        }

        /** Null where the server has none: then the bundle is checked against its own table. */
        fun fetchReport(url: URL): String? =
            try {
                readText(HttpSource(URL(url, url.path + ".json" + url.query?.let { "?$it" }.orEmpty())))
            } catch (error: DemoException) {
                if (error.problem == Problem.REFUSED_BY_SERVER) null else throw error
            } catch (error: IOException) {
                throw DemoException(Problem.NETWORK, "${url.host}: ${error.message}; try again", error)
            }
    }
}
