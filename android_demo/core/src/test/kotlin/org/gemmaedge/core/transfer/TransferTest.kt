package org.gemmaedge.core.transfer

import java.io.ByteArrayInputStream
import java.io.File
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.cancel
import kotlinx.coroutines.runBlocking
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.bundle.Bundle
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.problem
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class TransferTest {
    @get:Rule val folder = TemporaryFolder()

    private val good = Vectors.bytes("small.litertlm")
    private val report = BundleReport.parse(Vectors.text("tiny.litertlm.json"))
        .copy(sizeBytes = good.size.toLong(), sha256 = Vectors.json("small.json")["sha256"].text)
    private val partial get() = File(folder.root, "m.litertlm.partial")
    private val plenty = 1L shl 40
    private val seen = mutableListOf<TransferProgress>()

    private fun transfer(attempts: Int = 0, freeBytes: Long = plenty) =
        Transfer(folder.root, { freeBytes }, Retries(attempts, firstDelayMs = 0), seen::add)

    private fun fetch(source: ByteSource, attempts: Int = 0, report: BundleReport? = this.report): Bundle =
        runBlocking { transfer(attempts).run(source, "m.litertlm", report).bundle }

    private fun assertArrived(bundle: Bundle) {
        assertEquals(File(folder.root, "m.litertlm"), bundle.file)
        assertArrayEquals(good, bundle.file.readBytes())
        assertEquals("nothing else is left", listOf("m.litertlm"), folder.root.list()!!.toList())
    }

    @Test
    fun `a download is copied, verified and named`() {
        FlakyServer(good).use { server -> assertArrived(fetch(HttpSource(server.url))) }
        val copied = seen.filter { it.step == TransferProgress.Step.COPYING }
        assertEquals(100, copied.last().progress?.percent)
        assertEquals(TransferProgress.Step.VERIFYING, seen.last().step)
    }

    @Test
    fun `without a report the server's size and the table's digests count`() {
        FlakyServer(good).use { server -> assertArrived(fetch(HttpSource(server.url), report = null)) }
    }

    @Test
    fun `dropped connections are taken up where they broke`() {
        val drops = arrayOf(Behaviour.Drop(1000), Behaviour.Drop(0), Behaviour.Drop(20_000))
        FlakyServer(good, *drops).use { server ->
            assertArrived(fetch(HttpSource(server.url), attempts = 2))
            // Java itself may ask once more where a connection closes early: what counts is that it goes on.
            assertEquals(listOf("", "bytes=1000-", "bytes=1000-", "bytes=21000-"), server.ranges)
        }
        assertTrue(seen.any { it.step == TransferProgress.Step.WAITING_TO_RETRY })
    }

    @Test
    fun `a later call goes on where one gave up`() {
        FlakyServer(good, Behaviour.Drop(5000), Behaviour.Drop(0)).use { server ->
            val message = problem(Problem.NETWORK) { fetch(HttpSource(server.url)) }
            assertTrue(message, message.startsWith("tiny.litertlm: stopped at 5 KiB ("))
            assertTrue(message, message.endsWith("; try again, it goes on from there"))
            assertEquals(5000L, partial.length())
            problem(Problem.NETWORK) { fetch(HttpSource(server.url)) }
            assertEquals("a call without luck loses nothing", 5000L, partial.length())
            assertArrived(fetch(HttpSource(server.url)))
            assertEquals("bytes=5000-", server.ranges.last())
        }
    }

    @Test
    fun `retries start again after progress and end without`() {
        FlakyServer(good, *Array(6) { Behaviour.Drop(100) }).use { server ->
            assertArrived(fetch(HttpSource(server.url), attempts = 1))
        }
        FlakyServer(good, *Array(4) { Behaviour.Status(503) }).use { server ->
            problem(Problem.NETWORK) { fetch(HttpSource(server.url), attempts = 3) }
            assertEquals(4, server.ranges.size)
        }
    }

    @Test
    fun `a copy that lacks nothing but its verification is completed`() {
        File(folder.root, "m.litertlm.partial").writeBytes(good)
        File(folder.root, "m.litertlm.partial.source").writeText("\"1\"")
        FlakyServer(good).use { server ->
            assertArrived(fetch(HttpSource(server.url), report = null))
            assertEquals(listOf("bytes=${good.size}-"), server.ranges)
        }
    }

    @Test
    fun `a file that became shorter is copied from the start`() {
        partial.writeBytes(good + 0)
        File(folder.root, "m.litertlm.partial.source").writeText("\"1\"")
        FlakyServer(good).use { server ->
            assertArrived(fetch(HttpSource(server.url), report = null))
            assertEquals(listOf("bytes=${good.size + 1}-", ""), server.ranges)
        }
        FlakyServer(good, Behaviour.Status(416)).use { server ->
            val message = problem(Problem.REFUSED_BY_SERVER) { fetch(HttpSource(server.url)) }
            assertTrue(message, message.contains("status 416 to a request without a range"))
        }
    }

    @Test
    fun `a file that changed on the server is copied from the start`() {
        val other = good.copyOf().also { it[it.size - 1] = 1 }
        FlakyServer(other, Behaviour.Drop(4000)).use { server ->
            problem(Problem.NETWORK) { fetch(HttpSource(server.url)) }
            server.content = good
            server.etag = "\"2\""
            assertArrived(fetch(HttpSource(server.url)))
        }
        val otherFirst = arrayOf(Behaviour.Drop(4000), Behaviour.IgnoreIfRange)
        FlakyServer(other, *otherFirst).use { server ->
            problem(Problem.NETWORK) { fetch(HttpSource(server.url)) }
            server.content = good
            server.etag = "\"2\""
            assertArrived(fetch(HttpSource(server.url)))
            assertEquals(listOf("", "bytes=4000-", ""), server.ranges)
        }
    }

    @Test
    fun `a server without versions is never resumed`() {
        FlakyServer(good, Behaviour.Drop(4000)).use { server ->
            server.etag = null
            assertArrived(fetch(HttpSource(server.url), attempts = 1))
            assertEquals(listOf("", ""), server.ranges)
        }
    }

    @Test
    fun `weak versions do not count`() {
        FlakyServer(good, Behaviour.Drop(4000)).use { server ->
            server.etag = "W/\"1\""
            assertArrived(fetch(HttpSource(server.url), attempts = 1))
            assertEquals(listOf("", ""), server.ranges)
        }
    }

    @Test
    fun `a server that ignores Range is followed`() {
        FlakyServer(good, Behaviour.Drop(4000), Behaviour.IgnoreRange).use { server ->
            assertArrived(fetch(HttpSource(server.url), attempts = 1))
        }
    }

    @Test
    fun `a server's refusal is not retried`() {
        FlakyServer(good, Behaviour.Status(404)).use { server ->
            val message = problem(Problem.REFUSED_BY_SERVER) { fetch(HttpSource(server.url), attempts = 3) }
            assertEquals("127.0.0.1: status 404, expected 200 or 206; check the address ${server.url}", message)
            assertEquals(1, server.ranges.size)
        }
        FlakyServer(good, Behaviour.Drop(10), Behaviour.WrongRange).use { server ->
            val message = problem(Problem.REFUSED_BY_SERVER) { fetch(HttpSource(server.url), attempts = 1) }
            assertTrue(message, message.contains("answered bytes 11-${good.size - 1}/${good.size} to a request from byte 10"))
        }
    }

    @Test
    fun `another size than the report's is refused before a byte is copied`() {
        FlakyServer(good + 0).use { server ->
            val message = problem(Problem.NOT_AS_REPORTED) { fetch(HttpSource(server.url)) }
            assertEquals("tiny.litertlm: offers ${good.size + 1} bytes, the report says ${good.size}; check the address", message)
            assertFalse(partial.exists())
        }
    }

    @Test
    fun `wrong bytes are not kept`() {
        FlakyServer(good.copyOf().also { it[it.size - 1] = 1 }).use { server ->
            problem(Problem.NOT_AS_REPORTED) { fetch(HttpSource(server.url)) }
        }
        assertEquals(emptyList<String>(), folder.root.list()!!.toList())
    }

    @Test
    fun `space is checked first`() {
        FlakyServer(good).use { server ->
            val message = problem(Problem.NO_SPACE) {
                runBlocking { transfer(freeBytes = good.size.toLong()).run(HttpSource(server.url), "m.litertlm", report) }
            }
            assertTrue(message, message.startsWith("tiny.litertlm: needs 64 MiB of storage, ${good.size / 1024} KiB is free; free 64 MiB"))
            assertFalse(partial.exists())
        }
    }

    @Test
    fun `cancelling keeps what came`() {
        val source = object : ByteSource {
            override val name = "slow"

            override fun open(offset: Long, identity: String?) =
                Opened(ByteArrayInputStream(good, offset.toInt(), good.size), offset, good.size.toLong(), "same")
        }
        runBlocking {
            val job = async(Dispatchers.Default) {
                Transfer(folder.root, { plenty }, Retries(0)) { if (it.step == TransferProgress.Step.COPYING) cancel() }
                    .run(source, "m.litertlm", report)
            }
            assertThrows(CancellationException::class.java) { runBlocking { job.await() } }
        }
        assertTrue(partial.exists())
        assertFalse(File(folder.root, "m.litertlm").exists())
        assertArrived(fetch(source))
    }

    @Test
    fun `cancelling the verification leaves no bundle without its report`() {
        FlakyServer(good).use { server ->
            runBlocking {
                val job = async(Dispatchers.Default) {
                    Transfer(folder.root, { plenty }, Retries(0)) { if (it.step == TransferProgress.Step.VERIFYING) cancel() }
                        .run(HttpSource(server.url), "m.litertlm", report)
                }
                assertThrows(CancellationException::class.java) { runBlocking { job.await() } }
            }
            assertTrue(partial.exists())
            assertFalse(File(folder.root, "m.litertlm").exists())
            assertArrived(fetch(HttpSource(server.url)))
        }
    }

    @Test
    fun `a document that cannot tell its size is copied to its end`() {
        val source = object : ByteSource {
            override val name = "document"

            override fun open(offset: Long, identity: String?) = Opened(ByteArrayInputStream(good), 0, null, null)
        }
        assertArrived(fetch(source, report = null))
        assertTrue(seen.filter { it.step == TransferProgress.Step.COPYING }.all { it.progress == null })
    }

    @Test
    fun `what was left behind can be discarded`() {
        FlakyServer(good, Behaviour.Drop(4000)).use { server -> problem(Problem.NETWORK) { fetch(HttpSource(server.url)) } }
        transfer().discard("m.litertlm")
        assertEquals(emptyList<String>(), folder.root.list()!!.toList())
    }

    @Test
    fun `a storage that cannot be written is not a broken connection`() {
        val message = FlakyServer(good).use { server ->
            problem(Problem.STORAGE) {
                val nowhere = Transfer(File(folder.newFile("file"), "none"), { plenty }, Retries(3))
                runBlocking { nowhere.run(HttpSource(server.url), "m.litertlm", report) }
            }
        }
        assertTrue(message, message.startsWith("m.litertlm.partial: cannot write ("))
    }

    @Test
    fun `a name with folders is a mistake of the caller`() {
        assertThrows(IllegalArgumentException::class.java) {
            runBlocking { transfer().run(HttpSource(java.net.URL("http://127.0.0.1/")), "../m.litertlm", report) }
        }
    }
}
