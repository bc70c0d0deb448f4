package org.gemmaedge.core.bundle

import java.io.File
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.problem
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class BundleTest {
    @get:Rule val folder = TemporaryFolder()

    private val good = Vectors.bytes("small.litertlm")
    private val expected = Vectors.json("small.json")
    private val headerEnd = expected["header_end"].int

    private fun open(content: ByteArray) = Bundle.open(Vectors.file(folder, content))

    private fun changed(at: Int, value: Int) = good.copyOf().also { it[at] = value.toByte() }

    @Test
    fun `a bundle has the sections that Python sees`() {
        val bundle = open(good)
        assertEquals(good.size.toLong(), bundle.sizeBytes)
        val sections = expected["sections"].items.map {
            Section(it["name"].text, it["begin"].long, it["end"].long, it["sha256"].optional { text })
        }
        assertEquals(sections, bundle.sections)
        assertTrue(bundle.hasVision)
        assertFalse(bundle.hasAudio)
        assertEquals(sections[0].end - sections[0].begin, bundle.sections[0].sizeBytes)
    }

    @Test
    fun `a section may go on into the next one, and into no other`() {
        val shared = Vectors.bytes("shared.litertlm")
        val (decoder, embedder) = open(shared).sections
        assertEquals("tf_lite_embedder", decoder.endsIn)
        assertTrue(decoder.end in embedder.begin + 1..embedder.end)
        val at = String(shared, Charsets.ISO_8859_1).indexOf("ends_in")
        val message = problem(Problem.DAMAGED) { open(shared.also { it[at] = 'E'.code.toByte() }) }
        assertTrue(message, message.endsWith("overlaps what ends at ${decoder.end}; copy the file again"))
    }

    @Test
    fun `something else is not a bundle`() {
        for (content in listOf(ByteArray(0), ByteArray(31), "GGUF".toByteArray() + ByteArray(100))) {
            val message = problem(Problem.NOT_A_BUNDLE) { open(content) }
            assertTrue(message, message.endsWith("not a .litertlm bundle; choose a file that gemma-edge's convert wrote"))
        }
    }

    @Test
    fun `another major version is named`() {
        val message = problem(Problem.NOT_A_BUNDLE) { open(changed(8, 2)) }
        assertTrue(message, message.endsWith("bundle version 2, expected 1; convert the model again"))
    }

    @Test
    fun `a file that is not there`() {
        val message = problem(Problem.STORAGE) { Bundle.open(File(folder.root, "none.litertlm")) }
        assertTrue(message, message.startsWith("none.litertlm: cannot read ("))
    }

    @Test
    fun `every truncation is noticed`() {
        val inHeader = problem(Problem.DAMAGED) { open(good.copyOf(headerEnd - 1)) }
        assertTrue(inHeader, inHeader.endsWith("truncated, its header ends at byte $headerEnd of ${headerEnd - 1}; copy the file again"))
        for (length in listOf(headerEnd, good.size / 2, good.size - 1)) {
            val message = problem(Problem.DAMAGED) { open(good.copyOf(length)) }
            assertTrue(message, message.endsWith("truncated, the file has $length bytes; copy the file again"))
        }
    }

    @Test
    fun `a header end that cannot be`() {
        val message = problem(Problem.DAMAGED) { open(changed(24, 16).also { it[25] = 0 }) }
        assertTrue(message, message.endsWith("its header cannot end at byte 16; copy the file again"))
    }

    @Test
    fun `no damage of the table gets further than an error`() {
        var refused = 0
        for (at in 32 until headerEnd) {
            for (value in listOf(0x00, 0x7F, 0xFF)) {
                try {
                    open(changed(at, value))
                } catch (error: DemoException) {
                    assertEquals(error.message, Problem.DAMAGED, error.problem)
                    refused++
                }
            }
        }
        assertTrue("$refused refused", refused > 100)
    }

    @Test
    fun `places that cannot be are named`() {
        for (case in expected["misplaced"].items) {
            val content = good.copyOf()
            case["bytes"].items.forEachIndexed { i, byte -> content[case["at"].int + i] = byte.int.toByte() }
            val message = problem(Problem.DAMAGED) { open(content) }
            assertTrue("$message: ${case["message"].text}", message.endsWith(case["message"].text + "; copy the file again"))
        }
    }
}
