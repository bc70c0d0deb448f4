package org.gemmaedge.core.store

import java.io.File
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.bundle.Bundle
import org.gemmaedge.core.bundle.BundleReport
import org.gemmaedge.core.bundle.Evidence
import org.gemmaedge.core.bundle.Section
import org.gemmaedge.core.bundle.Verified
import org.gemmaedge.core.catalogue.Catalogue
import org.gemmaedge.core.chat.Accelerator
import org.gemmaedge.core.chat.Backends
import org.gemmaedge.core.chat.LoadRequest
import org.gemmaedge.core.problem
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class BundleStoreTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val good = Vectors.bytes("small.litertlm")
    private val report = reportOf(good)
    private val pushed by lazy { temporary.newFolder("pushed") }
    private val caches by lazy { temporary.newFolder("cache") }
    private val folder by lazy { File(temporary.root, "models") }

    private fun store(vararg entries: String) =
        BundleStore(folder, pushed, caches, Catalogue.parse("""{"models": [${entries.joinToString()}]}"""))

    private fun write(file: File, bytes: ByteArray, report: String? = null): File {
        file.parentFile!!.mkdirs()
        file.writeBytes(bytes)
        report?.let { File("${file.path}.json").writeText(it) }
        return file
    }

    @Test
    fun `what lies in both folders is listed by name, with its report`() {
        val store = store()
        write(File(folder, "b.litertlm"), good)
        write(File(folder, "notes.txt"), good)
        write(File(pushed, "a.litertlm"), good, report)
        val (a, b) = store.list().map { (it as Listed.Here).stored }
        assertEquals(listOf("a", "b"), listOf(a.name, b.name))
        assertEquals(listOf(true, false), listOf(a.isPushed, b.isPushed))
        assertEquals(BundleReport.parse(report), a.report)
        assertNull(b.report)
        assertTrue(a.bundle.hasVision)
    }

    @Test
    fun `damage is listed with its reason`() {
        val store = store()
        write(File(folder, "cut.litertlm"), good.copyOf(700))
        write(File(folder, "odd.litertlm"), good, report = "{}")
        val messages = store.list().map { (it as Listed.Damaged).message }
        assertTrue(messages[0], messages[0].startsWith("cut.litertlm: "))
        assertTrue(messages[1], messages[1].startsWith("not a converter's report ("))
        problem(Problem.STORAGE) { store.open(File(folder, "missing.litertlm")) }
    }

    @Test
    fun `the catalogue offers what is not here, and knows what is`() {
        val here = """{"title": "Here", "url": "https://example.org/here.litertlm", "report": ${named("here.litertlm")}}"""
        val away = """{"title": "Away", "url": "https://example.org/away.litertlm", "report": ${named("away.litertlm")}}"""
        val byHand = """{"title": "By hand", "report": ${named("hand.litertlm")}}"""
        val store = store(here, away, byHand)
        write(File(folder, "here.litertlm"), good)
        val (first, second) = store.list()
        assertEquals("here.litertlm", (first as Listed.Here).stored.report?.fileName)
        assertEquals("Here", store.entryOf(first.stored)?.title)
        assertEquals("Away", (second as Listed.Offered).entry.title)
        assertEquals("by hand only: no address", 2, store.list().size)
    }

    @Test
    fun `the same model with a shorter context is found where it is verified and fits`() {
        val store = store()
        val full = BundleReport.parse(report)
        for (context in listOf(512, 1024, 2048)) {
            val text = report.replace("\"context_tokens\": 2048", "\"context_tokens\": $context")
            val file = write(File(folder, "c$context.litertlm"), good, text)
            store.mark(Verified(store.open(file).bundle, Evidence.REPORT), BundleReport.parse(text))
        }
        write(File(folder, "other.litertlm"), good, report.replace("custom-int4", "e2b-int4"))
        assertEquals("c1024", store.shorter(full) { true }?.name)
        assertEquals("c512", store.shorter(full) { it.contextTokens < 1000 }?.name)
        assertNull(store.shorter(full) { false })
        assertNull(store.shorter(full.copy(contextTokens = 512)) { true })
        File(folder, "verified.txt").delete()
        assertNull("nobody has verified it", store.shorter(full) { true })
    }

    @Test
    fun `a mark holds for the same bytes and the same report`() {
        val store = store()
        val file = write(File(folder, "m.litertlm"), good, report)
        fun stored() = store.open(file)
        assertFalse(stored().isVerified)
        store.mark(Verified(stored().bundle, Evidence.REPORT), stored().report)
        assertTrue(stored().isVerified)
        assertTrue("by another store, after a restart", store().open(file).isVerified)

        store.saveReport(file, report.replace(Regex("[0-9a-f]{64}"), "0".repeat(64)))
        assertFalse("another report", stored().isVerified)
        store.saveReport(file, report)
        assertTrue(stored().isVerified)

        file.setLastModified(file.lastModified() + 2_000)
        assertFalse("touched", stored().isVerified)
        store.mark(Verified(stored().bundle, Evidence.REPORT), stored().report)
        assertEquals("the old mark is gone", 1, File(folder, "verified.txt").readLines().size)
        File(folder, "verified.txt").appendText("\nnot a mark")
        assertTrue(stored().isVerified)
    }

    @Test
    fun `without a report, a mark tells what was looked at`() {
        val store = store()
        val file = write(File(folder, "m.litertlm"), good)
        assertNull("nobody has looked", store.open(file).evidence)
        for (evidence in Evidence.entries - Evidence.REPORT - Evidence.SIGNATURE) {
            store.mark(Verified(store.open(file).bundle, evidence), null)
            assertEquals(evidence, store.open(file).evidence)
            assertEquals(evidence == Evidence.TABLE, store.open(file).isVerified)
        }
        store.saveReport(file, report)
        assertNull("a report has come since", store.open(file).evidence)
    }

    @Test
    fun `what an interrupted copy left can be seen and deleted`() {
        val store = store("""{"title": "Away", "url": "https://example.org/a.litertlm", "report": ${named("a.litertlm")}}""")
        write(File(folder, "m.litertlm.partial"), good)
        File(folder, "m.litertlm.partial.source").writeText("1")
        val (unfinished, offered) = store.list()
        assertEquals("m.litertlm", (unfinished as Listed.Unfinished).name)
        assertTrue(offered is Listed.Offered)
        store.delete(unfinished)
        assertEquals(emptyList<String>(), folder.list()!!.toList())
    }

    @Test
    fun `what is deleted takes its report and its repacked weights along`() {
        val store = store()
        val file = write(File(folder, "m.litertlm"), good, report)
        val ofOther = write(File(caches, "m2.litertlm_1_2.xnnpack_cache"), good)
        for (name in listOf("m.litertlm_1_2.xnnpack_cache", "m.litertlm.vision_encoder.xnnpack_cache")) write(File(caches, name), good)
        store.delete(file)
        assertEquals(emptyList<Listed>(), store.list())
        assertFalse(File("${file.path}.json").exists())
        assertEquals(listOf(ofOther), caches.listFiles()!!.toList())
    }

    private fun named(name: String) = report.replace("small.litertlm", name)

    @Test
    fun `a bundle is asked for what it has, and no more`() {
        fun with(vararg sections: String): StoredBundle {
            val bundle = Bundle(File("m.litertlm"), 1, sections.map { Section(it, 0, 1, null) })
            return StoredBundle(bundle, null, isPushed = false, Evidence.NONE)
        }
        val wanted = Backends(Accelerator.GPU, Accelerator.GPU, Accelerator.CPU)
        assertEquals(LoadRequest("m.litertlm", Backends(Accelerator.GPU), "c"), with("tf_lite_prefill_decode").request(wanted, true, "c"))
        val whole = with("tf_lite_vision_encoder", "tf_lite_audio_encoder_hw", "tf_lite_mtp_drafter")
        assertEquals(LoadRequest("m.litertlm", wanted, "c", drafts = true), whole.request(wanted, mayDraft = true, "c"))
        val off = Backends(Accelerator.CPU, vision = null, audio = null)
        assertEquals(LoadRequest("m.litertlm", off, "c"), whole.request(off, mayDraft = false, "c"))
    }
}

/** A report that describes these bytes, called small.litertlm. */
fun reportOf(bytes: ByteArray): String {
    val text = Vectors.text("tiny.litertlm.json")
    val written = BundleReport.parse(text)
    return text.replace(written.sha256, Vectors.json("small.json")["sha256"].text)
        .replace("\"bytes\": ${written.sizeBytes}", "\"bytes\": ${bytes.size}")
        .replace(written.fileName, "small.litertlm")
}
