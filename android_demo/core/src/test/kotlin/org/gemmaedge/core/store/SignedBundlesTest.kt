package org.gemmaedge.core.store

import com.sun.net.httpserver.HttpServer
import java.io.ByteArrayInputStream
import java.io.File
import java.io.IOException
import java.net.InetAddress
import java.net.InetSocketAddress
import java.util.concurrent.CopyOnWriteArrayList
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.bundle.TrustedKey
import org.gemmaedge.core.bundle.Verified
import org.gemmaedge.core.catalogue.Catalogue
import org.gemmaedge.core.chat.Backends
import org.gemmaedge.core.problem
import org.gemmaedge.core.transfer.ByteSource
import org.gemmaedge.core.transfer.Opened
import org.gemmaedge.core.transfer.Retries
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** What an app with a trusted key takes, however it comes. */
class SignedBundlesTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val good = Vectors.bytes("small.litertlm")
    private val report = reportOf(good)
    private val vectors = Vectors.json("signed.json")
    private val signature = vectors["curves"]["P-256"]["signature"].text
    private val ofOther = vectors["other"].text
    private val sha256 = Vectors.json("small.json")["sha256"].text
    private val folder by lazy { File(temporary.root, "models") }
    private val pushed by lazy { temporary.newFolder("pushed") }
    private val caches by lazy { temporary.newFolder("cache") }
    private var trusted: () -> TrustedKey? = { TrustedKey.parse(vectors["curves"]["P-256"]["key"].text) }
    private var entries = ""
    private val file by lazy { File(folder, "small.litertlm") }
    private val signatureFile by lazy { File(folder, "small.litertlm.sig") }

    /** As of a process that has just begun. */
    private fun newStore() = BundleStore(folder, pushed, caches, trusted) { Catalogue.parse("""{"models": [$entries]}""") }

    private fun work(action: suspend CoroutineScope.(BundleWork) -> Unit) = runBlocking {
        val journal = WorkJournal(File(folder, "work.json"))
        withTimeout(60_000) { action(BundleWork(newStore(), this, journal, ::document, retries = Retries(0, 0))) }
    }

    private val documents = mutableMapOf<String, ByteArray>()

    private fun document(address: String) = object : ByteSource {
        override val name = address

        override fun open(offset: Long, identity: String?): Opened {
            val content = documents[address] ?: throw IOException("gone")
            return Opened(ByteArrayInputStream(content), 0, content.size.toLong(), null)
        }
    }

    private suspend fun BundleWork.imported(bundle: ByteArray, report: String?, signature: String?): WorkState {
        documents["small.litertlm"] = bundle
        report?.let { documents["small.litertlm.json"] = it.toByteArray() }
        signature?.let { documents["small.litertlm.sig"] = it.toByteArray() }
        val names = listOf(report to "small.litertlm.json", signature to "small.litertlm.sig").map { (text, name) -> text?.let { name } }
        return outcomeOf(WorkRequest.Import("small.litertlm", "small.litertlm", names[0], names[1]))
    }

    private suspend fun BundleWork.outcomeOf(request: WorkRequest): WorkState {
        begin(request)
        return state.first { it !is WorkState.Running }
    }

    private fun stored(state: WorkState): StoredBundle = (state as WorkState.Done).stored

    private fun refusal(state: WorkState): String = (state as WorkState.Failed).error.let {
        assertEquals(it.message, Problem.NOT_SIGNED, it.problem)
        it.message
    }

    private fun assertNothingIsHere() {
        assertEquals(emptyList<String>(), folder.list()!!.toList() - "work.json")
        assertEquals(emptyList<Listed>(), newStore().list())
    }

    @Test
    fun `what is signed is imported with its signature, and remembered`() = work { work ->
        for (said in listOf(report, null)) {
            val stored = stored(work.imported(good, said, signature))
            assertEquals(Evidence.SIGNATURE, stored.evidence)
            assertTrue(stored.isVerified)
            assertEquals(sha256, stored.signedSha256)
            assertEquals(signature, signatureFile.readText())
            assertEquals("by another process, without hashing it again", Evidence.SIGNATURE, newStore().open(file).evidence)
            newStore().delete(file)
            assertEquals(listOf("verified.txt"), folder.list()!!.toList() - "work.json")
        }
    }

    @Test
    fun `what is not signed is refused before its first byte`() = work { work ->
        val missing = "small.litertlm: found no small.litertlm.sig, expected a signature of the key that this app trusts; " +
            "get it from the maker of the bundle"
        assertEquals(missing, refusal(work.imported(good, report, null)))
        assertEquals(missing, refusal(work.imported(good, null, null)))
        val other = refusal(work.imported(good, report, ofOther))
        assertTrue(other, other.startsWith("small.litertlm.sig: vouches for SHA-256 "))
        val end = "..., the report says ${sha256.take(16)}...; get the bundle with both again from its maker"
        assertTrue(other, other.endsWith(end))
        val changed = refusal(work.imported(good, report, signature.replace("\"sig\":\"M", "\"sig\":\"N")))
        assertTrue(changed, changed.startsWith("small.litertlm.sig: not a signature of this app's key ("))
        val long = refusal(work.imported(good, report, " ".repeat(2_000_000)))
        assertEquals("small.litertlm.sig: longer than any signature; choose the .sig file that gemma-edge sign wrote", long)
        assertNothingIsHere()
    }

    @Test
    fun `what the signature does not vouch for is not kept`() = work { work ->
        val flipped = good.copyOf().also { it[it.size - 1] = (it.last().toInt() xor 1).toByte() } // in a section without a digest
        val message = refusal(work.imported(flipped, null, signature))
        val end = "the signature vouches for ${sha256.take(16)}...; get the bundle and its .sig again from its maker"
        assertTrue(message, message.endsWith(end))
        assertEquals(Problem.NOT_AS_REPORTED, (work.imported(flipped, report, signature) as WorkState.Failed).error.problem)
        assertNothingIsHere()
    }

    @Test
    fun `a download asks for the signature beside the bundle`() = runBlocking {
        val asked = CopyOnWriteArrayList<String>()
        val files = mutableMapOf("/m/small.litertlm" to good, "/m/small.litertlm.json" to report.toByteArray())
        val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        server.createContext("/") { exchange ->
            asked += "${exchange.requestURI}"
            val content = files[exchange.requestURI.path]
            exchange.sendResponseHeaders(if (content == null) 404 else 200, content?.size?.toLong() ?: -1)
            exchange.responseBody.use { out -> content?.let(out::write) }
        }
        server.start()
        val url = "http://127.0.0.1:${server.address.port}/m/small.litertlm?download=true"
        entries = """{"title": "Small", "url": "$url", "report": $report}"""
        try {
            for (request in listOf(WorkRequest.Download(url), WorkRequest.Offered("small.litertlm"))) {
                files -= "/m/small.litertlm.sig"
                work { work ->
                    assertTrue(refusal(work.outcomeOf(request)).startsWith("small.litertlm: found no small.litertlm.sig, expected "))
                    assertFalse("not a byte of it", "/m/small.litertlm?download=true" in asked)
                    files["/m/small.litertlm.sig"] = ofOther.toByteArray()
                    assertTrue(refusal(work.outcomeOf(request)).startsWith("small.litertlm.sig: vouches for SHA-256 "))
                    files["/m/small.litertlm.sig"] = signature.toByteArray()
                    assertEquals(Evidence.SIGNATURE, stored(work.outcomeOf(request)).evidence)
                }
                assertTrue("/m/small.litertlm.sig?download=true" in asked)
                assertEquals(Evidence.SIGNATURE, newStore().open(file).evidence)
                newStore().delete(file)
                asked.clear()
            }
        } finally {
            server.stop(0)
        }
    }

    private fun push(signature: String?, report: String? = this.report, bundle: ByteArray = good): File {
        val file = File(pushed, "p.litertlm")
        file.writeBytes(bundle)
        for ((suffix, text) in listOf("json" to report, "sig" to signature)) {
            File("${file.path}.$suffix").apply { if (text != null) writeText(text) else delete() }
        }
        return file
    }

    private fun listed(): String = (newStore().list().single() as Listed.Damaged).let {
        assertEquals(it.message, Problem.NOT_SIGNED, it.problem)
        it.message
    }

    @Test
    fun `what adb brought is listed as refused, or verified where it lies`() = work { work ->
        push(null)
        assertTrue(listed(), listed().startsWith("p.litertlm: found no p.litertlm.sig, expected "))
        push("{}")
        assertTrue(listed(), listed().startsWith("p.litertlm.sig: not a signature of this app's key ("))
        push(ofOther)
        assertTrue(listed(), listed().startsWith("p.litertlm.sig: vouches for SHA-256 "))
        for (said in listOf(report, null)) {
            val file = push(signature, said)
            val unseen = newStore().open(file)
            assertNull("nobody has hashed it", unseen.evidence)
            val message = problem(Problem.NOT_SIGNED) { unseen.request(Backends(), mayDraft = false, "c") }
            assertEquals("p.litertlm: not yet held against its signature; tap it in the list of models", message)
            work.verify(unseen)
            assertEquals(Evidence.SIGNATURE, stored(work.state.first { it !is WorkState.Running }).evidence)
            val again = newStore().open(file)
            assertEquals(Evidence.SIGNATURE, again.evidence)
            assertEquals(file.path, again.request(Backends(), mayDraft = false, "c").bundlePath)
            push(ofOther, said)
            if (said != null) problem(Problem.NOT_SIGNED) { newStore().open(file) } else assertNull(newStore().open(file).evidence)
            push(signature, said, bundle = good.copyOf().also { it[it.size - 1] = (it.last().toInt() xor 1).toByte() })
            file.setLastModified(file.lastModified() + 2_000)
            work.verify(newStore().open(file))
            assertTrue(work.state.first { it !is WorkState.Running } is WorkState.Failed)
            assertNull(newStore().open(file).evidence)
            File(folder, "verified.txt").delete()
        }
    }

    @Test
    fun `a key that comes with an update is asked for at once, and spares a second hash`() {
        val file = push(signature)
        val trust = trusted
        trusted = { null }
        val store = newStore()
        store.mark(Verified(store.open(file).bundle, Evidence.REPORT), store.open(file).report)
        assertEquals(Evidence.REPORT, store.open(file).evidence)
        trusted = trust
        assertEquals(Evidence.SIGNATURE, newStore().open(file).evidence)
        push(null)
        assertTrue(listed(), listed().startsWith("p.litertlm: found no p.litertlm.sig, expected "))
    }

    @Test
    fun `a bundle without digests is not loaded for having been looked at`() {
        val file = push(signature, report = null)
        val trust = trusted
        trusted = { null }
        val store = newStore()
        store.mark(Verified(store.open(file).bundle, Evidence.TABLE), null)
        assertTrue(store.open(file).isVerified)
        trusted = trust
        assertNull(newStore().open(file).evidence)
    }

    @Test
    fun `without a trusted key no signature is looked at`() {
        trusted = { null }
        work { work ->
            val stored = stored(work.imported(good, report, "not a signature"))
            assertEquals(Evidence.REPORT to null, stored.evidence to stored.signedSha256)
            assertFalse(signatureFile.exists())
            assertEquals(Evidence.REPORT, stored(work.imported(good, report, null)).evidence)
        }
    }

    @Test
    fun `an app with a broken key loads nothing`() {
        push(signature)
        trusted = { TrustedKey.parse("no key") }
        val damaged = newStore().list().single() as Listed.Damaged
        assertEquals(Problem.UNEXPECTED, damaged.problem)
        assertTrue(damaged.message, damaged.message.startsWith("the app's trusted key: not a public key in PEM ("))
        work { work ->
            val error = (work.imported(good, report, signature) as WorkState.Failed).error
            assertEquals(damaged.message, error.message)
        }
    }

    @Test
    fun `a signature that cannot be read is said so`() {
        push(null)
        File(pushed, "p.litertlm.sig").mkdir()
        val message = problem(Problem.STORAGE) { newStore().open(File(pushed, "p.litertlm")) }
        assertTrue(message, Regex("p\\.litertlm\\.sig: cannot read \\(.*\\); copy it again").matches(message))
    }

    @Test
    fun `an import goes on with its signature after a restart`() {
        val journal = WorkJournal(File(folder, "work.json"))
        val entry = JournalEntry(WorkRequest.Import("m", "content://1", null, "content://2"), mayUseMetered = false, wasRunning = true)
        journal.write(entry)
        assertEquals(entry, journal.read())
        val former = """{"kind":"import","name":"m","document":"1","report":"2","may_use_metered":true,"was_running":true}"""
        File(folder, "work.json").writeText(former)
        assertEquals(WorkRequest.Import("m", "1", "2"), journal.read()?.request)
    }
}
