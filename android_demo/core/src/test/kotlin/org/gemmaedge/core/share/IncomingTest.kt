package org.gemmaedge.core.share

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Test

class IncomingTest {
    private val send = "android.intent.action.SEND"

    private fun viewed(data: String) = incoming(Handed("android.intent.action.VIEW", data = data))

    @Test
    fun `what other apps share`() {
        assertEquals(Incoming.Words("a page"), incoming(Handed(send, "text/plain", "a page")))
        val picture = "content://photos/1"
        assertEquals(Incoming.Files(true, listOf(picture), null), incoming(Handed(send, "image/jpeg", streams = listOf(picture))))
        assertEquals(Incoming.Files(true, listOf(picture), "What?"), incoming(Handed(send, "image/*", "What?", listOf(picture))))
        val sound = listOf("content://sounds/1")
        assertEquals(Incoming.Files(false, sound, null), incoming(Handed(send, "audio/mpeg", streams = sound)))
        val many = (1..20).map { "content://photos/$it" }
        assertEquals(Incoming.Files(true, many.take(8), null), incoming(Handed("${send}_MULTIPLE", "image/*", streams = many)))
        val file = "content://files/1"
        assertEquals(Incoming.BundleFile(file), incoming(Handed(send, "application/octet-stream", streams = listOf(file))))
        assertEquals(20_000, (incoming(Handed(send, "text/plain", "x".repeat(30_000))) as Incoming.Words).text.length)
    }

    @Test
    fun `what is of no use, or not theirs to hand over`() {
        assertNull(incoming(Handed("android.intent.action.MAIN")))
        assertNull(incoming(Handed(null)))
        assertNull(incoming(Handed(send, "text/plain", "  ")))
        assertNull(incoming(Handed(send, "image/png", streams = listOf("file:///data/data/org.gemmaedge.app/files/chats/1.json"))))
        assertNull(incoming(Handed(send, "image/png", streams = listOf("content://$OWN_AUTHORITY/photo.jpg"))))
        assertNull(viewed("content://$OWN_AUTHORITY/photo.jpg"))
        assertNull(incoming(Handed("android.intent.action.VIEW")))
    }

    @Test
    fun `links and files that are opened`() {
        assertEquals(Incoming.BundleFile("content://downloads/7"), viewed("content://downloads/7"))
        assertEquals(Incoming.Words("two words & more"), viewed("gemma-edge://ask?text=two+words%20%26%20more"))
        val address = "https://example.org/e2b.litertlm"
        assertEquals(Incoming.Download(address), viewed("gemma-edge://download?url=https%3A%2F%2Fexample.org%2Fe2b.litertlm"))
        assertEquals(Incoming.Download(address), viewed("gemma-edge://download?url=$address"))
        val nothing = listOf(
            "gemma-edge://ask", "gemma-edge://ask?text=", "gemma-edge://other?text=x",
            "gemma-edge://download?url=http://example.org/m.litertlm",
            "gemma-edge://download?url=https://example.org/m.zip", "https://example.org", "not a link", "file:///sdcard/m.litertlm",
        )
        assertEquals(nothing.map { null }, nothing.map(::viewed))
        assertEquals(Incoming.Words("%zz"), viewed("gemma-edge://ask?text=%25zz"))
    }
}
