package org.gemmaedge.core.bundle

import java.security.KeyPair
import java.security.KeyPairGenerator
import java.security.MessageDigest
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import java.util.Base64
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.Vectors
import org.gemmaedge.core.json.Json
import org.gemmaedge.core.problem
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertTrue
import org.junit.Test

private const val PAYLOAD_TYPE = "application/vnd.in-toto+json"

class TrustedKeyTest {
    private val sha256 = Vectors.json("small.json")["sha256"].text
    private val vectors = Vectors.json("signed.json")
    private val p256 = vectors["curves"]["P-256"]
    private val key = TrustedKey.parse(p256["key"].text)
    private val good = p256["signature"].text
    private val mine = keys("secp256r1")
    private val mineTrusted = TrustedKey.parse(pem(mine))

    private fun keys(curve: String): KeyPair =
        KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec(curve)) }.generateKeyPair()

    private fun pem(keys: KeyPair) = pem(keys.public.encoded)

    private fun pem(encoded: ByteArray): String {
        val lines = Base64.getMimeEncoder(64, "\n".toByteArray()).encodeToString(encoded)
        return "-----BEGIN PUBLIC KEY-----\n$lines\n-----END PUBLIC KEY-----\n"
    }

    /** Why [text] is refused; the rest of the message is the same each time. */
    private fun refusal(text: String, by: TrustedKey = key): String {
        val message = problem(Problem.NOT_SIGNED) { by.signed("m.litertlm", text) }
        val (begin, end) = "m.litertlm.sig: not a signature of this app's key (" to "); get the bundle and its .sig again from its maker"
        assertTrue(message, message.startsWith(begin) && message.endsWith(end))
        return message.removePrefix(begin).removeSuffix(end)
    }

    @Test
    fun `what model-signing has signed is vouched for, with each of its curves`() {
        for (curve in vectors["curves"].names) {
            val case = vectors["curves"][curve]
            assertEquals(curve, sha256, TrustedKey.parse(case["key"].text).signed("small.litertlm", case["signature"].text))
        }
        val windows = TrustedKey.parse("\n" + p256["key"].text.replace("\n", "\r\n"))
        assertEquals(sha256, windows.signed("small.litertlm", good))
    }

    @Test
    fun `a signature of another file vouches for that one`() {
        val signed = key.signed("small.litertlm", vectors["other"].text)
        assertTrue(signed, Regex("[0-9a-f]{64}").matches(signed) && signed != sha256)
    }

    @Test
    fun `a signature of another key names both`() {
        val why = refusal(good, TrustedKey.parse(pem(keys("secp256r1"))))
        assertTrue(why, Regex("made with the key [0-9a-f]{16}\\.\\.\\., the app trusts [0-9a-f]{16}\\.\\.\\.").matches(why))
        val unnamed = good.replace(Regex("\"hint\":\"[0-9a-f]*\""), "\"hint\":null")
        assertEquals("as older versions write it", sha256, key.signed("small.litertlm", unnamed))
        assertEquals("the key did not sign this text: one of them was changed", refusal(unnamed, mineTrusted))
        val larger = TrustedKey.parse(vectors["curves"]["P-521"]["key"].text)
        assertEquals("the key did not sign this text: one of them was changed", refusal(unnamed, larger))
    }

    @Test
    fun `no flipped bit of a signature vouches for other bytes`() {
        val bytes = good.toByteArray()
        val payload = Json.parse(good)["dsseEnvelope"]["payload"].text
        val what = good.indexOf(payload).let { it until it + payload.length - 1 }
        for (at in bytes.indices step 3) {
            val text = String(bytes.copyOf().also { it[at] = (it[at].toInt() xor (1 shl at % 7)).toByte() })
            try {
                assertEquals("what nothing depends on, such as the list of logs", sha256, key.signed("m.litertlm", text))
                assertTrue("$at", at !in what)
            } catch (error: DemoException) {
                assertEquals(Problem.NOT_SIGNED, error.problem)
            }
        }
    }

    @Test
    fun `what is no signature is refused`() {
        for (text in listOf("", "{", "[]", "{}", "null", "7", "\u0000", "[".repeat(100_000), """{"mediaType": 7}""")) refusal(text)
        assertEquals("mediaType: found nothing, expected text", refusal("{}"))
        assertEquals(
            "mediaType: found \"x y\", expected \"application/vnd.dev.sigstore.bundle.v0.3+json\"",
            refusal("""{"mediaType": "x\ny"}"""),
        )
        val certificate = good.replace("publicKey", "certificate")
        assertEquals("verificationMaterial.publicKey: found nothing, expected an object", refusal(certificate))
        assertEquals(
            "payloadType: found \"text/plain\", expected \"$PAYLOAD_TYPE\"",
            refusal(good.replace(PAYLOAD_TYPE, "text/plain")),
        )
        assertTrue(refusal(good.replace("\"payload\":\"", "\"payload\":\"%")).startsWith("payload: not base64 ("))
        assertTrue(refusal(good.replace("\"sig\":\"", "\"sig\":\"%")).startsWith("sig: not base64 ("))
        val sig = Regex("\"sig\":\"[^\"]*\"")
        for (bytes in listOf("", "AAAA", Base64.getEncoder().encodeToString(byteArrayOf(48, 6, 2, 1, 0, 2, 1, 0)))) {
            val why = refusal(good.replace(sig, "\"sig\":\"$bytes\""))
            assertEquals("the key did not sign this text: one of them was changed", why)
        }
        val twice = good.replace(Regex("\"signatures\":\\[(.*)]"), "\"signatures\":[$1,$1]")
        assertEquals("signatures: found 2, expected one", refusal(twice))
    }

    /** Signed as it has to be, whatever it says. */
    private fun signed(payload: String): String {
        val bytes = payload.toByteArray()
        val signature = Signature.getInstance("SHA256withECDSA").run {
            initSign(mine.private)
            update("DSSEv1 ${PAYLOAD_TYPE.length} $PAYLOAD_TYPE ${bytes.size} ".toByteArray())
            update(bytes)
            sign()
        }
        fun base64(bytes: ByteArray) = Base64.getEncoder().encodeToString(bytes)
        return Json.write(
            mapOf(
                "mediaType" to "application/vnd.dev.sigstore.bundle.v0.3+json",
                "verificationMaterial" to mapOf("publicKey" to mapOf("hint" to null), "tlogEntries" to emptyList<Any>()),
                "dsseEnvelope" to mapOf(
                    "payload" to base64(bytes),
                    "payloadType" to PAYLOAD_TYPE,
                    "signatures" to listOf(mapOf("sig" to base64(signature), "keyid" to "")),
                ),
            ),
        )
    }

    @Test
    fun `the key's owner has to have signed one file, by its SHA-256`() {
        val digest = "0a".repeat(32)
        val root = MessageDigest.getInstance("SHA-256").digest(ByteArray(32) { 10 }).joinToString("") { "%02x".format(it) }
        val resource = """{"algorithm": "sha256", "name": ".", "digest": "$digest"}"""
        val subject = """{"name": "m.litertlm", "digest": {"sha256": "$root"}}"""
        val whole = """{"_type": "https://in-toto.io/Statement/v1", "subject": [$subject],
            "predicateType": "https://model_signing/signature/v1.0", "predicate": {"resources": [$resource]}}"""
        assertEquals(digest, mineTrusted.signed("m.litertlm", signed(whole)))
        val file = "\"name\": \".\""
        val refusals = mapOf(
            whole.replace("Statement/v1", "Statement/v0.1") to
                "_type: found \"https://in-toto.io/Statement/v0.1\", expected \"https://in-toto.io/Statement/v1\"",
            whole.replace("signature/v1.0", "signature/v2") to
                "predicateType: found \"https://model_signing/signature/v2\", expected \"https://model_signing/signature/v1.0\"",
            whole.replace(resource, "$resource, $resource") to "resources: found 2, expected one",
            whole.replace(resource, "") to "resources: found 0, expected one",
            whole.replace(subject, "$subject, $subject") to "subject: found 2, expected one",
            whole.replace(file, "\"name\": \"m.litertlm\"") to "name: found \"m.litertlm\", expected \".\"",
            whole.replace("\"algorithm\": \"sha256\"", "\"algorithm\": \"blake2\"") to "algorithm: found \"blake2\", expected \"sha256\"",
            whole.replace(digest, "0A".repeat(32)) to "digest: found \"${"0A".repeat(30)}\", expected 64 hexadecimal digits",
            whole.replace(digest, "0b".repeat(32)) to "sha256: found \"${root.take(60)}\", expected \"${
                MessageDigest.getInstance("SHA-256").digest(ByteArray(32) { 11 }).joinToString("") { "%02x".format(it) }
            }\"",
            "[]" to "the whole: found \"[]\", expected an object",
        )
        for ((payload, why) in refusals) assertEquals(why, refusal(signed(payload), mineTrusted))
        refusal(signed("\u0000"), mineTrusted)
        refusal(signed(""), mineTrusted)
    }

    @Test
    fun `what is no key of these curves is refused`() {
        fun why(pem: String): String {
            val message = problem(Problem.UNEXPECTED) { TrustedKey.parse(pem) }
            val end = "); build the app with what `openssl ec -pubout` writes"
            val begin = "the app's trusted key: not a public key in PEM ("
            assertTrue(message, message.startsWith(begin) && message.endsWith(end))
            return message.removePrefix(begin).removeSuffix(end)
        }
        val secret = pem(keys("secp256r1").private.encoded).replace("PUBLIC", "PRIVATE")
        assertEquals("begins with \"-----BEGIN PRIVATE KEY-----\", expected \"-----BEGIN PUBLIC KEY-----\"", why(secret))
        assertEquals("begins with \"\", expected \"-----BEGIN PUBLIC KEY-----\"", why(""))
        assertEquals("not base64", why(pem(ByteArray(4)).replace("AAAA", "A%AA")))
        val other = "none of the curves P-256, P-384 and P-521"
        val rsa = KeyPairGenerator.getInstance("RSA").apply { initialize(2048) }.generateKeyPair()
        for (bytes in listOf(rsa.public.encoded, ByteArray(0), ByteArray(91) { 48 })) assertEquals(other, why(pem(bytes)))
        assertEquals(other, why(vectors["other_curve"].text))
        assertNotNull(TrustedKey.parse(pem(keys("secp384r1"))))
    }
}
