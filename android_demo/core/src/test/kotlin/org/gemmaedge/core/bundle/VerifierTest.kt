package org.gemmaedge.core.bundle

import java.io.File
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.problem
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class VerifierTest {
    @get:Rule val folder = TemporaryFolder()

    private val good = Vectors.bytes("small.litertlm")
    private val sha256 = Vectors.json("small.json")["sha256"].text
    private val report = BundleReport.parse(Vectors.text("tiny.litertlm.json")).copy(sizeBytes = good.size.toLong(), sha256 = sha256)

    private fun file(content: ByteArray): File = Vectors.file(folder, content)

    private fun flipped(at: Int) = good.copyOf().also { it[at] = (it[at].toInt() xor 1).toByte() }

    @Test
    fun `the file that the report describes passes, with progress to the end`() {
        val seen = mutableListOf<Progress>()
        val (bundle, evidence) = Verifier(seen::add).verify(file(good), report)
        assertEquals(Evidence.REPORT, evidence)
        assertEquals(good.size.toLong(), bundle.sizeBytes)
        assertEquals(Progress(bundle.sizeBytes, bundle.sizeBytes), seen.last())
        assertEquals(100, seen.last().percent)
    }

    @Test
    fun `a truncated file is damaged`() {
        problem(Problem.DAMAGED) { Verifier().verify(file(good.copyOf(good.size - 1)), report) }
    }

    @Test
    fun `a flipped byte is noticed wherever it is`() {
        val bundle = Bundle.open(file(good))
        val padding = bundle.sections[1].begin.toInt() - 1
        for (at in listOf(bundle.sections[0].begin.toInt(), padding, good.size - 1)) {
            val message = problem(Problem.NOT_AS_REPORTED) { Verifier().verify(file(flipped(at)), report) }
            assertTrue(message, message.endsWith("..., the report says ${sha256.take(16)}...; copy the file again"))
        }
    }

    @Test
    fun `another report's hash does not pass`() {
        problem(Problem.NOT_AS_REPORTED) { Verifier().verify(file(good), report.copy(sha256 = "0".repeat(64))) }
    }

    @Test
    fun `what was signed is hashed whole, with a report and without`() {
        for (said in listOf(report, null)) {
            assertEquals(Evidence.SIGNATURE, Verifier().verify(file(good), said, sha256).evidence)
        }
        val spoiled = file(flipped(good.size - 1))
        val message = problem(Problem.NOT_SIGNED) { Verifier().verify(spoiled, null, sha256) }
        assertTrue(message, message.startsWith("${spoiled.name}: has SHA-256 "))
        val end = "..., the signature vouches for ${sha256.take(16)}...; get the bundle and its .sig again from its maker"
        assertTrue(message, message.endsWith(end))
        problem(Problem.NOT_AS_REPORTED) { Verifier().verify(spoiled, report, sha256) }
        problem(Problem.NOT_SIGNED) { Verifier().verify(file(good), report, "0".repeat(64)) }
    }

    @Test
    fun `another size is named`() {
        val message = problem(Problem.NOT_AS_REPORTED) { Verifier().verify(file(good + 0), report) }
        assertTrue(message, message.endsWith("has ${good.size + 1} bytes, the report says ${good.size}; copy the file again"))
    }

    @Test
    fun `without a report the table's own digests decide`() {
        val seen = mutableListOf<Progress>()
        val (bundle, evidence) = Verifier(seen::add).verify(file(good), null)
        assertEquals("the last section has no digest", Evidence.PART_OF_TABLE, evidence)
        val recorded = bundle.sections.filter { it.sha256 != null }
        assertEquals(recorded.sumOf { it.sizeBytes }, seen.last().done)
        assertEquals(100, seen.last().percent)
        for (section in recorded) {
            val message = problem(Problem.DAMAGED) { Verifier().verify(file(flipped(section.end.toInt() - 1)), null) }
            assertTrue(message, message.contains("section ${section.name} has SHA-256 "))
        }
    }

    /** The table's keys, spoiled: as many digests as the writer of another program records. */
    private fun withDigests(kept: Int): ByteArray {
        val text = String(good, Charsets.ISO_8859_1)
        val keys = Regex("sha256").findAll(text).map { it.range.first }.toList()
        assertEquals(2, keys.size)
        return good.copyOf().also { bytes -> keys.drop(kept).forEach { bytes[it] = 'x'.code.toByte() } }
    }

    @Test
    fun `what nothing tells of is not called verified`() {
        assertEquals(Evidence.NONE, Verifier().verify(file(withDigests(0)), null).evidence)
        assertEquals(Evidence.PART_OF_TABLE, Verifier().verify(file(withDigests(1)), null).evidence)
        assertEquals(listOf(true, true, true, false, false), Evidence.entries.map { it.isWhole })
    }
}
