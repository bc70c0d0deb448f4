package org.gemmaedge.core.store

import java.io.IOException
import java.net.MalformedURLException
import java.net.URL
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.bundle.Verified
import org.gemmaedge.core.bundle.Verifier
import org.gemmaedge.core.transfer.ByteSource
import org.gemmaedge.core.transfer.HttpSource
import org.gemmaedge.core.transfer.Retries
import org.gemmaedge.core.transfer.Transfer
import org.gemmaedge.core.transfer.TransferProgress

/** What the phone is connected to. METERED: somebody may pay for every byte. */
enum class Network { NONE, METERED, UNMETERED }

/** Why work rests. */
enum class Pause {
    /** The user wants it so. */
    WANTED,

    /** The connection has become one that is paid for by the byte. */
    METERED,

    /** There is no connection; it goes on by itself when there is one. */
    OFFLINE,

    /** The system lets nothing run longer in the background today. */
    TIME_LIMIT,

    /** The app or the phone was restarted. */
    RESTARTED,
}

/** What the one long operation on bundles is doing: an import, a download or a verification. */
sealed interface WorkState {
    /** Whether the process has to stay, though nobody looks at it: it works, or waits for a network to go on by itself. */
    val needsProcess: Boolean
        get() = this is Running || (this is Paused && (reason == Pause.OFFLINE || reason == Pause.METERED))

    data object Idle : WorkState

    /** Whether to download over a connection that is paid for by the byte; [sizeBytes] where it is known. */
    data class Asking(val request: WorkRequest, val sizeBytes: Long?) : WorkState

    /** [progress] is null until the first byte. [canPause]: what a verification cannot. */
    data class Running(val name: String, val progress: TransferProgress?, val canPause: Boolean = true) : WorkState

    /** What has arrived is kept. */
    data class Paused(val request: WorkRequest, val reason: Pause) : WorkState

    /** [wasHere]: it has not come just now; it was verified because somebody wants to load it. */
    data class Done(val stored: StoredBundle, val wasHere: Boolean) : WorkState

    data class Failed(val error: DemoException) : WorkState
}

/**
 * Brings bundles here and verifies them, one at a time. Screens, and the process, may come and go meanwhile.
 *
 * Stopping and pausing keep what has arrived; the same import or download goes on from there. All functions belong to the
 * main thread.
 *
 * @param documents opens what [WorkRequest.Import] names.
 * @param network what the phone is connected to at this moment.
 */
class BundleWork(
    private val store: BundleStore,
    private val scope: CoroutineScope,
    private val journal: WorkJournal,
    private val documents: (String) -> ByteSource,
    private val network: () -> Network = { Network.UNMETERED },
    private val retries: Retries = Retries(),
) {
    private val states = MutableStateFlow<WorkState>(WorkState.Idle)
    private var work: Job? = null
    private var current: JournalEntry? = null

    val state: StateFlow<WorkState> = states.asStateFlow()
    val isRunning: Boolean get() = states.value is WorkState.Running

    /** Bring a bundle, in place of work that rests. Asks first where the network is paid for by the byte. */
    fun begin(request: WorkRequest) {
        check(!isRunning) { "one at a time" }
        start(JournalEntry(request, mayUseMetered = false, wasRunning = true))
    }

    /** The answer to [WorkState.Asking], or the wish to go on with what is [WorkState.Paused] on any network. */
    fun allowMetered() {
        val entry = current ?: return
        if (!isRunning) start(entry.copy(mayUseMetered = true))
    }

    /** Rest; what has arrived is kept, and so is the wish to have the rest. */
    fun pause(reason: Pause = Pause.WANTED) {
        val entry = current ?: return
        if (!isRunning) return
        states.value = WorkState.Paused(entry.request, reason)
        remember(entry.copy(wasRunning = reason != Pause.WANTED))
        work?.cancel()
    }

    fun resume() {
        val entry = current ?: return
        if (states.value is WorkState.Paused) start(entry)
    }

    /** Give it up; what has arrived is kept for the same request. */
    fun stop() {
        states.value = WorkState.Idle
        forget()
        work?.cancel()
    }

    /** The network is another one. */
    fun networkChanged() {
        val entry = current?.takeIf { it.request.isDownload } ?: return
        val paused = (states.value as? WorkState.Paused)?.reason
        when (network()) {
            Network.NONE -> pause(Pause.OFFLINE)
            Network.METERED -> if (!entry.mayUseMetered) pause(Pause.METERED) else if (paused == Pause.OFFLINE) resume()
            Network.UNMETERED -> if (paused == Pause.OFFLINE || paused == Pause.METERED) resume()
        }
    }

    /** What a former process, or the phone before its restart, left undone. It rests; whether it goes on is [shouldGoOn]. */
    suspend fun restore() {
        val entry = withContext(Dispatchers.IO) { journal.read() } ?: return
        if (states.value != WorkState.Idle) return // something else was begun meanwhile
        current = entry
        states.value = WorkState.Paused(entry.request, if (entry.wasRunning) Pause.RESTARTED else Pause.WANTED)
    }

    /** Whether what rests was interrupted against the user's will. */
    val shouldGoOn: Boolean get() = (states.value as? WorkState.Paused)?.reason == Pause.RESTARTED

    /** Hash a bundle that came by another way than this app, such as adb. */
    fun verify(stored: StoredBundle) {
        check(!isRunning) { "one at a time" }
        run(WorkState.Running(stored.file.name, null, canPause = false)) {
            withContext(Dispatchers.IO) {
                val verifier = Verifier { progress ->
                    ensureActive()
                    progressed(stored.file.name, TransferProgress(TransferProgress.Step.VERIFYING, progress), canPause = false)
                }
                val verified = verifier.verify(stored.file, stored.report, stored.signedSha256)
                store.mark(verified, stored.report, stored.signedSha256)
                WorkState.Done(store.open(stored.file), wasHere = true)
            }
        }
    }

    /** The outcome has been shown. */
    fun seen() {
        if (states.value is WorkState.Done || states.value is WorkState.Failed) states.value = WorkState.Idle
    }

    private fun start(entry: JournalEntry) {
        val request = entry.request
        current = entry
        if (request.isDownload && network() == Network.METERED && !entry.mayUseMetered) {
            states.value = WorkState.Asking(request, sizeOf(request))
            return
        }
        run(WorkState.Running(request.name, null)) {
            remember(entry.copy(wasRunning = true))
            val stored = when (request) {
                is WorkRequest.Download -> download(webAddress(request.url))
                is WorkRequest.Offered -> downloadOffered(request.name)
                is WorkRequest.Import -> import(request)
            }
            forget()
            WorkState.Done(stored, wasHere = false)
        }
    }

    private suspend fun import(request: WorkRequest.Import): StoredBundle = bring(
        request.name,
        source = { documents(request.document) },
        readReport = { request.report?.let { Sidecar.REPORT.read(documents(it)) } },
        readSignature = { request.signature?.let { Sidecar.SIGNATURE.read(documents(it)) } },
    )

    /** The report is asked for at the same address with .json added, the signature with .sig. */
    private suspend fun download(url: URL): StoredBundle = bring(
        WorkRequest.bundleName(HttpSource(url).name),
        source = { HttpSource(url) },
        readReport = { Sidecar.REPORT.fetch(url) },
        readSignature = { Sidecar.SIGNATURE.fetch(url) },
    )

    /** Its report is part of the catalogue. */
    private suspend fun downloadOffered(name: String): StoredBundle {
        val entry = withContext(Dispatchers.IO) { store.offered(name) }
            ?: throw DemoException(Problem.REFUSED_BY_SERVER, "$name: no longer in the catalogue; choose another")
        val url = checkNotNull(entry.url)
        val signature = withContext(Dispatchers.IO) { store.signature(name, entry.report) { Sidecar.SIGNATURE.fetch(url) } }
        val verified = transfer(name).run(HttpSource(url), name, entry.report, signature?.sha256)
        return arrived(verified, entry.report, text = null, signature)
    }

    private suspend fun bring(
        name: String,
        source: () -> ByteSource,
        readReport: () -> String?,
        readSignature: () -> String?,
    ): StoredBundle {
        val text = withContext(Dispatchers.IO) { readReport() }
        val report = text?.let(BundleReport::parse)
        val signature = withContext(Dispatchers.IO) { store.signature(name, report, readSignature) }
        val opened = withContext(Dispatchers.IO) { source() }
        return arrived(transfer(name).run(opened, name, report, signature?.sha256), report, text, signature)
    }

    /** [text]: of the report, where it is to be kept. What a former bundle of this name left behind is not. */
    private suspend fun arrived(verified: Verified, report: BundleReport?, text: String?, signature: BundleSignature?): StoredBundle =
        withContext(NonCancellable + Dispatchers.IO) {
            val file = verified.bundle.file
            if (text != null) store.saveReport(file, text) else store.deleteReport(file)
            store.saveSignature(file, signature)
            store.mark(verified, report, signature?.sha256)
            store.open(file)
        }

    private fun transfer(name: String) = Transfer(store.folder, retries = retries) { progressed(name, it) }

    private fun run(first: WorkState.Running, action: suspend () -> WorkState) {
        states.value = first
        val former = work
        work = scope.launch {
            former?.join() // what was paused may still be writing its last bytes
            val end = try {
                action()
            } catch (error: CancellationException) {
                throw error // whoever cancelled it has told the state
            } catch (error: DemoException) {
                offlineOr(error)
            } catch (error: IOException) {
                failed(Problem.STORAGE, "${first.name}: cannot be read or written (${error.message}); try again", error)
            } catch (error: Exception) { // from an app that provides a document, or of our own making
                failed(Problem.UNEXPECTED, "${first.name}: ${error::class.java.simpleName} (${error.message})", error)
            }
            // What has arrived while it was being paused is here all the same.
            if (isActive || (end is WorkState.Done && states.value is WorkState.Paused)) states.value = end
        }
    }

    private fun failed(problem: Problem, message: String, cause: Exception) = WorkState.Failed(DemoException(problem, message, cause))

    /** Without any network the connection is not at fault: the work rests until there is one. */
    private fun offlineOr(error: DemoException): WorkState {
        val entry = current
        val isOffline = error.problem == Problem.NETWORK && network() == Network.NONE
        return if (isOffline && entry != null) WorkState.Paused(entry.request, Pause.OFFLINE) else WorkState.Failed(error)
    }

    private fun sizeOf(request: WorkRequest): Long? = (request as? WorkRequest.Offered)?.let { store.offered(it.name)?.report?.sizeBytes }

    private fun remember(entry: JournalEntry) {
        current = entry
        try {
            journal.write(entry)
        } catch (_: IOException) {
            // The storage is full: the copy itself will say so.
        }
    }

    private fun forget() {
        current = null
        journal.clear()
    }

    /** Called from the threads that copy and hash; what was paused or stopped meanwhile does not run again by that. */
    private fun progressed(name: String, progress: TransferProgress, canPause: Boolean = true) {
        val now = states.value
        if (now is WorkState.Running && now.name == name) states.compareAndSet(now, WorkState.Running(name, progress, canPause))
    }

    private companion object {
        fun webAddress(text: String): URL =
            try {
                URL(text)
            } catch (error: MalformedURLException) {
                throw DemoException(Problem.NETWORK, "$text: not an address (${error.message}); correct it", error)
            }
    }
}
