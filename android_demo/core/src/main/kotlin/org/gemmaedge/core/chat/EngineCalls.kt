package org.gemmaedge.core.chat

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeoutOrNull

/**
 * How long an engine may take.
 *
 * [firstPieceMs]: a long prompt with images takes minutes on a slow phone, and the user can stop at any time.
 * [nextPieceMs]: a decoding step that reads all of its weights from storage takes seconds. [stopMs]: from a wish to stop
 * to the end of the call; native code ends after the step that it is in.
 */
data class Patience(
    val loadMs: Long = 600_000,
    val firstPieceMs: Long = 600_000,
    val nextPieceMs: Long = 60_000,
    val stopMs: Long = 10_000,
    val releaseMs: Long = 30_000,
    val measureMs: Long = 900_000,
)

/** The engine has something else to do, or nothing to do it with. */
class EngineBusy(message: String) : Exception(message)

/** The engine said nothing for too long, and ended when it was told to. */
class EngineSilent(message: String) : Exception(message)

/** The engine does not even return from a call when it is told to. */
class EngineStuck(message: String) : Exception(message)

/**
 * Calls to an engine, one after the other, none of which is waited for without end.
 *
 * A call that does not return when it is cancelled is left behind. Native code may still be in the conversation then, so
 * until it returns, every further call throws [EngineStuck]; when it does, [onReturn] is called.
 *
 * All on the one thread of [scope].
 */
internal class EngineCalls(private val scope: CoroutineScope, private val patience: Patience, private val onReturn: () -> Unit) {
    private var leftBehind: String? = null

    /** Throws what [action] throws, [EngineSilent] or [EngineStuck]. [stopMs]: what it may take to return when cancelled. */
    suspend fun call(what: String, limitMs: Long, stopMs: Long = patience.stopMs, action: suspend () -> Unit) {
        checkFree()
        var outcome = Result.success(Unit)
        val job = begin { outcome = runCatching { action() } }
        endIfCancelled(job, what, stopMs) {
            if (withTimeoutOrNull(limitMs) { job.join() } == null) {
                end(job, what, stopMs)
                throw EngineSilent("the engine took longer than ${limitMs / MS_PER_S} s to $what")
            }
        }
        outcome.getOrThrow()
    }

    /** Every element of [pieces], in time. Throws as [call]. */
    suspend fun collect(what: String, pieces: Flow<String>, onPiece: (String) -> Unit) {
        checkFree()
        val arrived = Channel<String>(Channel.UNLIMITED)
        val job = begin {
            val outcome = runCatching { pieces.collect { arrived.send(it) } }
            arrived.close(outcome.exceptionOrNull())
        }
        endIfCancelled(job, what, patience.stopMs) {
            var limitMs = patience.firstPieceMs
            while (true) {
                val next = withTimeoutOrNull(limitMs) { arrived.receiveCatching() }
                if (next == null) {
                    end(job, what, patience.stopMs)
                    throw EngineSilent("the engine wrote nothing for ${limitMs / MS_PER_S} s")
                }
                if (next.isClosed) {
                    next.exceptionOrNull()?.let { throw it }
                    break
                }
                onPiece(next.getOrThrow())
                limitMs = patience.nextPieceMs
            }
        }
    }

    private fun checkFree() {
        leftBehind?.let { throw EngineStuck("the engine is still busy: $it") }
    }

    /** Undispatched: it has entered its own try before anybody can cancel it. A failure is an outcome, not the scope's end. */
    private fun begin(action: suspend () -> Unit): Job = scope.launch(start = CoroutineStart.UNDISPATCHED) { action() }

    private suspend fun endIfCancelled(job: Job, what: String, stopMs: Long, wait: suspend () -> Unit) {
        try {
            wait()
        } catch (error: CancellationException) {
            if (job.isActive) withContext(NonCancellable) { end(job, what, stopMs) }
            throw error
        }
    }

    private suspend fun end(job: Job, what: String, stopMs: Long) {
        job.cancel()
        if (withTimeoutOrNull(stopMs) { job.join() } != null) return
        leftBehind = what
        scope.launch {
            job.join()
            leftBehind = null
            onReturn()
        }
        throw EngineStuck("the engine did not return within ${stopMs / MS_PER_S} s when it was told to stop: $what")
    }

    private companion object {
        const val MS_PER_S = 1_000.0
    }
}
