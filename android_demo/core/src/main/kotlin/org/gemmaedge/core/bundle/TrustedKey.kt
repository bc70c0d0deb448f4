package org.gemmaedge.core.bundle

import java.security.AlgorithmParameters
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.Signature
import java.security.interfaces.ECPublicKey
import java.security.spec.ECGenParameterSpec
import java.security.spec.ECParameterSpec
import java.security.spec.X509EncodedKeySpec
import kotlin.io.encoding.Base64
import org.gemmaedge.core.DemoException
import org.gemmaedge.core.Problem
import org.gemmaedge.core.json.Json
import org.gemmaedge.core.json.JsonException

/**
 * The public key without whose signature an app loads nothing: OpenSSF model signing, its method of keys, offline.
 *
 * `gemma-edge sign` writes such a signature, NAME.sig. What it says and what is held against it is that of the package
 * model-signing 1.1.1 (sign_sigstore_pb.py, sign_ec_key.py, signing.py): a Sigstore bundle with a DSSE envelope around an
 * in-toto statement. The forms of its versions before 1.0 are refused.
 */
class TrustedKey private constructor(private val key: ECPublicKey, private val algorithm: String) {
    /** By which a signature names the key it was made with: the SHA-256 of the key in PEM. */
    private val hint = sha256(pem().toByteArray())

    /**
     * The SHA-256 of the bundle [name], as [text], its signature, vouches for it; in lower-case hexadecimal.
     *
     * Throws [DemoException], NOT_SIGNED: it is no signature, not of this key, or not of one file.
     */
    fun signed(name: String, text: String): String =
        try {
            digestIn(Json.parse(String(payloadOf(Json.parse(text)))))
        } catch (error: JsonException) {
            val why = error.message.orEmpty().replace(Regex("\\s+"), " ")
            throw DemoException(
                Problem.NOT_SIGNED,
                "$name.sig: not a signature of this app's key ($why); get the bundle and its .sig again from its maker",
                error,
            )
        }

    private fun payloadOf(bundle: Json): ByteArray {
        bundle.expect("mediaType", "application/vnd.dev.sigstore.bundle.v0.3+json")
        bundle["verificationMaterial"]["publicKey"]["hint"].optional { text }?.let {
            if (it != hint) throw JsonException("made with the key ${it.take(SHOWN)}..., the app trusts ${hint.take(SHOWN)}...")
        }
        val envelope = bundle["dsseEnvelope"]
        envelope.expect("payloadType", PAYLOAD_TYPE)
        val payload = envelope.bytes("payload")
        val signature = envelope.single("signatures").bytes("sig")
        if (!isMine(signature, payload)) throw JsonException("the key did not sign this text: one of them was changed")
        return payload
    }

    /** DSSE's protocol.md, version 1: what is signed is the type and the payload, each after its length in bytes. */
    private fun isMine(signature: ByteArray, payload: ByteArray): Boolean =
        try {
            Signature.getInstance(algorithm).run {
                initVerify(key)
                update("DSSEv1 ${PAYLOAD_TYPE.length} $PAYLOAD_TYPE ${payload.size} ".toByteArray())
                update(payload)
                verify(signature)
            }
        } catch (_: GeneralSecurityException) { // not even the form of one
            false
        }

    private fun digestIn(statement: Json): String {
        statement.expect("_type", "https://in-toto.io/Statement/v1")
        statement.expect("predicateType", "https://model_signing/signature/v1.0")
        val resource = statement["predicate"].single("resources")
        resource.expect("algorithm", "sha256")
        resource.expect("name", ".") // the file that was signed, not one in a folder
        val digest = resource["digest"].text
        if (!SHA256.matches(digest)) throw JsonException("digest: found \"${digest.take(LONGEST_QUOTE)}\", expected 64 hexadecimal digits")
        val raw = ByteArray(digest.length / 2) { digest.substring(2 * it, 2 * it + 2).toInt(16).toByte() }
        statement.single("subject")["digest"].expect("sha256", sha256(raw))
        return digest
    }

    /** As Python's cryptography writes it, which the hint is computed from. */
    private fun pem(): String =
        Base64.encode(key.encoded).chunked(PEM_LINE_CHARS).joinToString("\n", "$BEGIN\n", "\n$END\n")

    companion object {
        private const val PAYLOAD_TYPE = "application/vnd.in-toto+json"
        private const val BEGIN = "-----BEGIN PUBLIC KEY-----"
        private const val END = "-----END PUBLIC KEY-----"
        private const val PEM_LINE_CHARS = 64
        private const val OTHER_CURVE = "none of the curves P-256, P-384 and P-521"
        private const val LONGEST_QUOTE = 60
        private const val SHOWN = 16
        private val SHA256 = Regex("[0-9a-f]{64}")

        /** The curves of model-signing, each with its hash. */
        private val ALGORITHMS =
            mapOf("secp256r1" to "SHA256withECDSA", "secp384r1" to "SHA384withECDSA", "secp521r1" to "SHA512withECDSA")

        /** Throws [DemoException], UNEXPECTED: whoever built the app gave it no such key. */
        fun parse(pem: String): TrustedKey {
            val lines = pem.trim().lines().map { it.trim() }
            if (lines.first() != BEGIN || lines.last() != END) {
                throw notAKey("begins with \"${lines.first().take(LONGEST_QUOTE)}\", expected \"$BEGIN\"")
            }
            val key = try {
                val encoded = Base64.decode(lines.drop(1).dropLast(1).joinToString(""))
                KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(encoded)) as ECPublicKey
            } catch (error: IllegalArgumentException) {
                throw notAKey("not base64", error)
            } catch (error: GeneralSecurityException) {
                throw notAKey(OTHER_CURVE, error)
            }
            val algorithm = ALGORITHMS.entries.find { isOf(it.key, key.params) }?.value
                ?: throw notAKey(OTHER_CURVE)
            return TrustedKey(key, algorithm)
        }

        private fun isOf(curve: String, found: ECParameterSpec): Boolean {
            val named = AlgorithmParameters.getInstance("EC").apply { init(ECGenParameterSpec(curve)) }
                .getParameterSpec(ECParameterSpec::class.java)
            return found.curve == named.curve && found.generator == named.generator && found.order == named.order
        }

        private fun notAKey(why: String, cause: Exception? = null) = DemoException(
            Problem.UNEXPECTED,
            "the app's trusted key: not a public key in PEM ($why); build the app with what `openssl ec -pubout` writes",
            cause,
        )

        private fun sha256(bytes: ByteArray): String =
            MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }

        private fun Json.expect(name: String, wanted: String) {
            val found = this[name].text
            if (found != wanted) throw JsonException("$name: found \"${found.take(LONGEST_QUOTE)}\", expected \"$wanted\"")
        }

        private fun Json.single(name: String): Json =
            this[name].items.let { it.singleOrNull() ?: throw JsonException("$name: found ${it.size}, expected one") }

        private fun Json.bytes(name: String): ByteArray =
            try {
                Base64.decode(this[name].text)
            } catch (error: IllegalArgumentException) {
                throw JsonException("$name: not base64 (${error.message})")
            }
    }
}
