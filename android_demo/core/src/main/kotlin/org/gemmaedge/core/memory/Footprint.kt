package org.gemmaedge.core.memory

/** The keys and values of one layer; [slots] positions, fewer than the context where the layer is a ring. */
data class KvCache(val slots: Int, val sizeBytes: Long) {
    init {
        require(slots >= 1) { "a cache of $slots slots" }
    }
}

/**
 * What the converter planned for the full context.
 *
 * [anonBytes] go away only by being freed. [fileBytes] are mapped and read for every token: the kernel may take them
 * back, and then decoding reads them from storage again (profiles/FORMAT.md, "One definition").
 */
data class Footprint(
    val anonBytes: Long,
    val fileBytes: Long,
    val contextTokens: Int,
    val shortestContextTokens: Int,
    val caches: List<KvCache>,
) {
    init {
        require(anonBytes >= 0 && fileBytes >= 0) { "bytes cannot be negative ($anonBytes anonymous, $fileBytes mapped)" }
        require(shortestContextTokens in 1..contextTokens) { "a prefill of $shortestContextTokens in a context of $contextTokens" }
    }

    val totalBytes: Long get() = anonBytes + fileBytes

    /**
     * The same model converted for a shorter context, at most: only the caches are made smaller here.
     *
     * To ask LiteRT-LM for fewer tokens (maxNumTokens) than a bundle was converted for saves nothing: it sets the whole
     * cache aside when it loads (measured with 0.18.1).
     */
    fun at(contextTokens: Int): Footprint {
        require(contextTokens in 1..this.contextTokens) { "$contextTokens tokens of ${this.contextTokens}" }
        val saved = caches.sumOf { it.sizeBytes - it.sizeBytes / it.slots * minOf(it.slots, contextTokens) }
        return copy(anonBytes = anonBytes - saved, contextTokens = contextTokens)
    }

    /** The contexts to offer, longest first: steps of 256 tokens down to one prefill chunk (executors/litert/footprint.py). */
    fun contexts(): List<Int> = (contextTokens downTo shortestContextTokens step CONTEXT_STEP_TOKENS).toList()

    private companion object {
        const val CONTEXT_STEP_TOKENS = 256
    }
}
