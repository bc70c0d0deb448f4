package org.gemmaedge.core.store

import com.sun.net.httpserver.HttpServer
import java.io.ByteArrayInputStream
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.URL
import java.util.concurrent.CountDownLatch
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.catalogue.Catalogue
import org.gemmaedge.core.transfer.Behaviour
import org.gemmaedge.core.transfer.ByteSource
import org.gemmaedge.core.transfer.FlakyServer
import org.gemmaedge.core.transfer.Opened
import org.gemmaedge.core.transfer.Retries
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class BundleWorkTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val good = Vectors.bytes("small.litertlm")
    private val report = reportOf(good)
    private val folder by lazy { File(temporary.root, "models") }
    private var entries = ""
    private var network = Network.UNMETERED
    private val journal by lazy { WorkJournal(File(folder, "work.json")) }
    private val pushed by lazy { temporary.newFolder("pushed") }
    private val caches by lazy { temporary.newFolder("cache") }
    private val store by lazy { newStore() }
    private val documents = mutableMapOf<String, ByteSource>()

    private fun newStore() = BundleStore(folder, pushed, caches) { Catalogue.parse("""{"models": [$entries]}""") }

    private fun newWork(scope: CoroutineScope) =
        BundleWork(store, scope, journal, { documents.getValue(it) }, { network }, Retries(attempts = 1, firstDelayMs = 0))

    private fun test(action: suspend CoroutineScope.(BundleWork) -> Unit) = runBlocking {
        withTimeout(60_000) { action(newWork(this)) }
    }

    private fun BundleWork.copyHere(source: ByteSource, report: ByteSource?) {
        documents["document"] = source
        report?.let { documents["report"] = it }
        begin(WorkRequest.Import(source.name, "document", report?.let { "report" }))
    }

    private fun BundleWork.download(url: URL) = begin(WorkRequest.Download(url.toString()))

    private suspend fun BundleWork.outcome(): WorkState = state.first { it !is WorkState.Running }

    private class Document(
        override val name: String,
        val content: ByteArray,
        val wrap: (InputStream) -> InputStream = { it },
    ) : ByteSource {
        override fun open(offset: Long, identity: String?): Opened {
            val begin = if (identity == "1") offset else 0
            val bytes = ByteArrayInputStream(content, begin.toInt(), content.size)
            return Opened(wrap(bytes), begin, content.size.toLong(), "1")
        }
    }

    private val reportDocument = Document("small.litertlm.json", report.toByteArray())

    private fun failure(state: WorkState): Problem = (state as WorkState.Failed).error.problem

    @Test
    fun `a document and its report are copied, verified and kept`() = test { work ->
        work.copyHere(Document("my model", good), reportDocument)
        assertTrue(work.isRunning)
        assertThrows(IllegalStateException::class.java) { work.copyHere(Document("other", good), null) }
        val done = work.outcome() as WorkState.Done
        assertFalse(done.wasHere)
        assertEquals(File(folder, "my model.litertlm"), done.stored.file)
        assertArrayEquals(good, done.stored.file.readBytes())
        assertEquals(BundleReport.parse(report), done.stored.report)
        assertTrue(done.stored.isVerified)
        work.seen()
        assertEquals(WorkState.Idle, work.state.value)
    }

    @Test
    fun `without a report the bundle's own table decides`() = test { work ->
        work.copyHere(Document("small.litertlm", good), null)
        val done = work.outcome() as WorkState.Done
        assertNull(done.stored.report)
        assertEquals("one section has no digest", Evidence.PART_OF_TABLE, done.stored.evidence)
        assertFalse(done.stored.isVerified)
        work.copyHere(Document("bad.litertlm", good.copyOf().also { it[33_000] = (it[33_000] + 1).toByte() }), null)
        assertEquals(Problem.DAMAGED, failure(work.outcome()))
        assertFalse(File(folder, "bad.litertlm").exists())
    }

    @Test
    fun `a bundle without a report does not take over a former one's`() = test { work ->
        work.copyHere(Document("small.litertlm", good), reportDocument)
        assertTrue(work.outcome() is WorkState.Done)
        work.copyHere(Document("small.litertlm", good + 0), null)
        val done = work.outcome() as WorkState.Done
        assertNull(done.stored.report)
        assertEquals(Evidence.PART_OF_TABLE, done.stored.evidence)
    }

    @Test
    fun `what the report does not describe is refused`() = test { work ->
        work.copyHere(Document("small.litertlm", good + 0), reportDocument)
        assertEquals(Problem.NOT_AS_REPORTED, failure(work.outcome()))
        work.copyHere(Document("small.litertlm", good), Document("x.json", "[]".toByteArray()))
        assertEquals(Problem.NOT_A_REPORT, failure(work.outcome()))
        work.copyHere(Document("small.litertlm", good), Document("x.json", ByteArray(2_000_000) { ' '.code.toByte() }))
        val error = (work.outcome() as WorkState.Failed).error
        assertEquals("x.json: longer than any report; choose the .json file that convert wrote", error.message)
        val unreadable = Document("x.json", good) { throw IOException("gone") }
        work.copyHere(Document("small.litertlm", good), unreadable)
        assertEquals(Problem.STORAGE, failure(work.outcome()))
        work.copyHere(Document("small.litertlm", good), Document("x.json", good) { throw SecurityException("no grant") })
        val unexpected = (work.outcome() as WorkState.Failed).error
        assertEquals("small.litertlm: SecurityException (no grant)", unexpected.message)
        assertEquals(Problem.UNEXPECTED, unexpected.problem)
    }

    @Test
    fun `stopping keeps what has arrived`() = test { work ->
        val arrived = CountDownLatch(1)
        val stopped = CountDownLatch(1)
        work.copyHere(
            Document("small.litertlm", good) { bytes ->
                object : InputStream() {
                    private var isFirst = true

                    override fun read(): Int = throw AssertionError("in pieces only")

                    override fun read(buffer: ByteArray, offset: Int, length: Int): Int {
                        if (isFirst) return bytes.read(buffer, offset, 5000).also { isFirst = false }
                        arrived.countDown()
                        stopped.await()
                        return bytes.read(buffer, offset, 0)
                    }
                }
            },
            reportDocument,
        )
        withContext(Dispatchers.IO) { arrived.await() }
        work.stop()
        assertEquals("at once, though the document blocks", WorkState.Idle, work.state.value)
        work.copyHere(Document("small.litertlm", good), reportDocument)
        assertTrue(work.outcome() is WorkState.Done)
        stopped.countDown()
        assertNull(journal.read())
    }

    @Test
    fun `stopping before the first step`() = test { work ->
        work.copyHere(Document("small.litertlm", good), reportDocument)
        work.stop()
        assertEquals(WorkState.Idle, work.outcome())
    }

    @Test
    fun `what adb brought is verified where it lies`() = test { work ->
        val file = File(temporary.root, "pushed/p.litertlm")
        store.list()
        file.writeBytes(good)
        File("${file.path}.json").writeText(report)
        work.verify(store.open(file))
        val done = work.outcome() as WorkState.Done
        assertTrue(done.wasHere && done.stored.isPushed && done.stored.isVerified)
        file.writeBytes(good.copyOf().also { it[33_000]++ })
        work.verify(store.open(file))
        assertEquals(Problem.NOT_AS_REPORTED, failure(work.outcome()))
    }

    @Test
    fun `a download takes the report from beside the bundle`() = test { work ->
        served(mapOf("/m/small.litertlm" to good, "/m/small.litertlm.json" to report.toByteArray())) { url ->
            work.download(url)
            assertEquals("small.litertlm", (work.outcome() as WorkState.Done).stored.report?.fileName)
        }
        served(mapOf("/m/small.litertlm" to good)) { url ->
            store.delete(File(folder, "small.litertlm"))
            work.download(url)
            assertNull((work.outcome() as WorkState.Done).stored.report)
        }
        work.download(URL("http://127.0.0.1:1/m/small.litertlm"))
        assertEquals(Problem.NETWORK, failure(work.outcome()))
    }

    @Test
    fun `a download from the catalogue is held against the catalogue's report`() = runBlocking {
        served(mapOf("/m/small.litertlm" to good)) { url ->
            entries = """{"title": "Small", "url": "$url", "report": $report}"""
            val work = newWork(this)
            work.begin(WorkRequest.Offered("small.litertlm"))
            assertEquals(File(folder, "small.litertlm"), (work.outcome() as WorkState.Done).stored.file)
            work.begin(WorkRequest.Offered("other.litertlm"))
            val error = (work.outcome() as WorkState.Failed).error
            assertEquals("other.litertlm: no longer in the catalogue; choose another", error.message)
        }
        served(mapOf("/m/small.litertlm" to good + 0)) { url ->
            entries = """{"title": "Small", "url": "$url", "report": $report}"""
            val store = newStore()
            store.delete(File(folder, "small.litertlm"))
            val work = BundleWork(store, this, journal, documents::getValue)
            work.begin(WorkRequest.Offered("small.litertlm"))
            assertEquals(Problem.NOT_AS_REPORTED, failure(work.outcome()))
        }
    }

    /** A server that sends a part of the bundle and then stalls; its report is in the catalogue. */
    private suspend fun stalling(behaviour: Behaviour, action: suspend (FlakyServer) -> Unit) =
        FlakyServer(good, behaviour).use { server ->
            entries = """{"title": "Small", "url": "${server.url}", "report": $report}"""
            action(server)
        }

    private val offered = WorkRequest.Offered("small.litertlm")

    private suspend fun BundleWork.untilArrived(bytes: Long) {
        while (File(folder, "small.litertlm.partial").length() < bytes) yield()
        assertTrue(state.value is WorkState.Running)
    }

    @Test
    fun `a download is paused at once and resumed where it was`() = test { work ->
        stalling(Behaviour.Stall(5000)) { server ->
            work.begin(offered)
            work.untilArrived(5000)
            work.pause()
            assertEquals(WorkState.Paused(offered, Pause.WANTED), work.state.value)
            assertEquals(JournalEntry(offered, mayUseMetered = false, wasRunning = false), journal.read())
            work.resume()
            assertTrue(work.outcome() is WorkState.Done)
            assertEquals(listOf("", "bytes=5000-"), server.ranges.toList())
            assertNull("nothing is left to do", journal.read())
        }
    }

    @Test
    fun `after a restart of the phone it goes on`() = runBlocking {
        stalling(Behaviour.Stall(5000)) { server ->
            val job = launch { // a process
                val work = newWork(this)
                work.begin(offered)
                work.untilArrived(5000)
                work.pause(Pause.TIME_LIMIT)
            }
            job.join()
            val work = newWork(this) // another
            work.restore()
            assertEquals(WorkState.Paused(offered, Pause.RESTARTED), work.state.value)
            assertTrue(work.shouldGoOn)
            work.resume()
            assertTrue(work.outcome() is WorkState.Done)
            assertEquals("bytes=5000-", server.ranges.last())
        }
        val none = newWork(this)
        none.restore()
        assertEquals(WorkState.Idle, none.state.value)
    }

    @Test
    fun `what the user has paused rests after a restart`() = runBlocking {
        journal.write(JournalEntry(WorkRequest.Import("m", "content://1", null), mayUseMetered = true, wasRunning = false))
        val work = newWork(this)
        work.restore()
        assertEquals(Pause.WANTED, (work.state.value as WorkState.Paused).reason)
        assertFalse(work.shouldGoOn)
        work.stop()
        assertEquals(WorkState.Idle, work.state.value)
        assertNull(journal.read())
    }

    @Test
    fun `a journal of another version is no work`() {
        folder.mkdirs()
        for (text in listOf("", "{}", """{"kind":"magic"}""", "[")) {
            File(folder, "work.json").writeText(text)
            assertNull(text, journal.read())
        }
        val download = JournalEntry(WorkRequest.Download("https://example.org/m.litertlm?x=1"), mayUseMetered = true, wasRunning = true)
        journal.write(download)
        assertEquals(download, journal.read())
        assertEquals("m.litertlm", download.request.name)
    }

    @Test
    fun `a network that is paid for by the byte is asked about`() = test { work ->
        stalling(Behaviour.Stall(5000)) {
            network = Network.METERED
            work.begin(offered)
            assertEquals(WorkState.Asking(offered, good.size.toLong()), work.state.value)
            work.stop()
            network = Network.UNMETERED
            work.begin(offered)
            work.untilArrived(5000)
            network = Network.METERED
            work.networkChanged()
            assertEquals(WorkState.Paused(offered, Pause.METERED), work.state.value)
            work.networkChanged()
            assertEquals("it stays so", WorkState.Paused(offered, Pause.METERED), work.state.value)
            work.allowMetered()
            work.networkChanged()
            assertTrue(work.outcome() is WorkState.Done)
        }
    }

    @Test
    fun `without a network it rests, and goes on with one`() = test { work ->
        stalling(Behaviour.Stall(5000)) {
            work.begin(offered)
            work.untilArrived(5000)
            network = Network.NONE
            work.networkChanged()
            assertEquals(WorkState.Paused(offered, Pause.OFFLINE), work.state.value)
            network = Network.UNMETERED
            work.networkChanged()
            assertTrue(work.outcome() is WorkState.Done)
        }
        network = Network.NONE
        work.download(URL("http://127.0.0.1:1/m/small.litertlm"))
        assertEquals("the server is not at fault", Pause.OFFLINE, (work.outcome() as WorkState.Paused).reason)
    }

    /** Files by path, with their query ignored; the bundle's address is given to [action]. */
    private suspend fun served(files: Map<String, ByteArray>, action: suspend (URL) -> Unit) {
        val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        server.createContext("/") { exchange ->
            val content = files[exchange.requestURI.path]
            exchange.sendResponseHeaders(if (content == null) 404 else 200, content?.size?.toLong() ?: -1)
            exchange.responseBody.use { out -> content?.let(out::write) }
        }
        server.start()
        try {
            action(URL("http://127.0.0.1:${server.address.port}/m/small.litertlm?download=true"))
        } finally {
            server.stop(0)
        }
    }
}
