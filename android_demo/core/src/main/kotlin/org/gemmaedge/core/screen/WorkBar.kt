package org.gemmaedge.core.screen

import org.gemmaedge.core.Problem
import org.gemmaedge.core.formatBytes
import org.gemmaedge.core.store.Pause
import org.gemmaedge.core.store.WorkState
import org.gemmaedge.core.transfer.TransferProgress

/**
 * The work on bundles, for a bar of the screen and for the notification. [permille] is null while nothing is known.
 *
 * [goOn]: what the first button says, null without one; [stop]: what the second says.
 */
data class WorkBar(val text: Phrase, val isRunning: Boolean, val permille: Int?, val goOn: Phrase?, val stop: Phrase) {
    companion object {
        /** Null where there is nothing to show. */
        fun of(state: WorkState): WorkBar? {
            val text = textOf(state) ?: return null
            val progress = (state as? WorkState.Running)?.progress?.progress
            val goOn = when (state) {
                is WorkState.Asking -> phrase("use_metered")
                is WorkState.Paused -> if (state.reason == Pause.METERED) phrase("use_metered") else phrase("resume")
                is WorkState.Running -> if (state.canPause) phrase("pause") else null
                else -> null
            }
            val isOver = state is WorkState.Done || state is WorkState.Failed
            val permille = progress?.let { (it.done * PERMILLE / it.total).toInt() }
            return WorkBar(text, state is WorkState.Running, permille, goOn, if (isOver) phrase("close") else phrase("stop"))
        }

        private fun textOf(state: WorkState): Phrase? = when (state) {
            is WorkState.Idle -> null
            is WorkState.Asking -> state.sizeBytes?.let { phrase("work_metered", state.request.name, formatBytes(it)) }
                ?: phrase("work_metered_unknown", state.request.name)
            is WorkState.Running -> textOf(state)
            is WorkState.Paused -> when (state.reason) {
                Pause.WANTED -> phrase("paused_wanted", state.request.name)
                Pause.METERED -> phrase("paused_metered", state.request.name)
                Pause.OFFLINE -> phrase("paused_offline", state.request.name)
                Pause.TIME_LIMIT -> phrase("paused_time_limit", state.request.name)
                Pause.RESTARTED -> phrase("paused_restarted", state.request.name)
            }
            is WorkState.Done ->
                if (state.stored.isVerified) phrase("work_done", state.stored.name) else phrase("work_done_unverified", state.stored.name)
            is WorkState.Failed -> phrase("work_failed", phraseOf(state.error.problem), state.error.message)
        }

        private fun textOf(running: WorkState.Running): Phrase {
            val progress = running.progress?.progress
            return when (running.progress?.step) {
                TransferProgress.Step.WAITING_TO_RETRY -> phrase("work_waiting", running.name)
                TransferProgress.Step.VERIFYING -> phrase("work_verifying", running.name, progress?.percent ?: 0)
                TransferProgress.Step.COPYING, null ->
                    progress?.let { phrase("work_copying", running.name, formatBytes(it.done), formatBytes(it.total)) }
                        ?: phrase("work_copying_unknown", running.name)
            }
        }

        const val PERMILLE = 1000
    }
}

fun phraseOf(problem: Problem): Phrase = when (problem) {
    Problem.NOT_A_BUNDLE -> phrase("problem_not_a_bundle")
    Problem.DAMAGED -> phrase("problem_damaged")
    Problem.NOT_AS_REPORTED -> phrase("problem_not_as_reported")
    Problem.NOT_SIGNED -> phrase("problem_not_signed")
    Problem.NOT_A_REPORT -> phrase("problem_not_a_report")
    Problem.NO_SPACE -> phrase("problem_no_space")
    Problem.NETWORK -> phrase("problem_network")
    Problem.REFUSED_BY_SERVER -> phrase("problem_refused_by_server")
    Problem.STORAGE -> phrase("problem_storage")
    Problem.UNEXPECTED -> phrase("problem_unexpected")
    Problem.LOAD_FAILED -> phrase("problem_load_failed")
    Problem.GENERATION_FAILED -> phrase("problem_generation_failed")
}
