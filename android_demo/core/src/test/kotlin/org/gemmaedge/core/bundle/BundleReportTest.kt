package org.gemmaedge.core.bundle

import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.problem
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Test

class BundleReportTest {
    private val text = Vectors.text("tiny.litertlm.json")

    @Test
    fun `a report of convert`() {
        val report = BundleReport.parse(text)
        val json = Vectors.json("tiny.litertlm.json")
        assertEquals("custom-int4", report.target)
        assertEquals("gemma3n", report.family)
        assertEquals("phone-2gb", report.profile)
        assertEquals("tiny.litertlm", report.fileName)
        assertEquals(json["output"]["bytes"].long, report.sizeBytes)
        assertEquals(json["output"]["sha256"].text, report.sha256)
        assertEquals(json["footprint"]["anon_bytes"].long + json["footprint"]["file_bytes"].long, report.footprint.totalBytes)
        assertEquals(json["kv"]["bytes"].long, report.footprint.caches.sumOf { it.sizeBytes })
        assertEquals(json["sections"].items.map { it["name"].text }, report.sectionBytes.keys.toList())
        assertFalse(report.hasVision || report.hasAudio)
        val measured = json["quality"]
        val figures = BundleQuality.Figures(
            measured["tokens"].int, measured["top1"].double, measured["kl"].double, measured["perplexity"].double,
            measured["reference_perplexity"].double,
        )
        assertEquals(BundleQuality("good", "replies are as good as the checkpoint's", figures), report.quality)
        assertEquals("tiny-gemma3n", report.checkpoint)
    }

    @Test
    fun `a report of a converter that did not measure`() {
        assertNull(BundleReport.parse(text.replace("\"quality\":", "\"another\":")).quality)
    }

    @Test
    fun `what is wrong is named`() {
        val cases = mapOf(
            "" to "character 0: found the end, expected a value",
            "{}" to "output: found nothing, expected an object",
            text.replace("\"sha256\": \"", "\"sha256\": \"x") to
                "output.sha256: found \"x${BundleReport.parse(text).sha256}\", expected 64 hexadecimal digits",
            text.replace("\"context_tokens\"", "\"context\"") to "context_tokens: found nothing, expected an integer",
            text.replace("\"context_tokens\": 2048", "\"context_tokens\": 64") to "footprint: a prefill of 128 in a context of 64",
            text.replace(Regex("\"prefill_tokens\": \\[[^]]*]"), "\"prefill_tokens\": []") to
                "prefill_tokens: found none, expected one",
            text.replace("\"verdict\"", "\"judgement\"") to "quality.verdict: found nothing, expected text",
            text.replace("\"slots\": 192", "\"slots\": 0") to "footprint: a cache of 0 slots",
        )
        for ((wrong, what) in cases) {
            assertEquals(
                "not a converter's report ($what); choose the .json file that convert wrote beside the bundle",
                problem(Problem.NOT_A_REPORT) { BundleReport.parse(wrong) },
            )
        }
    }
}
