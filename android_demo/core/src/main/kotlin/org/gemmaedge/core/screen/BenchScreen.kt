package org.gemmaedge.core.screen

import org.gemmaedge.core.bench.BenchState
import org.gemmaedge.core.bench.Measurement
import org.gemmaedge.core.formatBytes

/** The benchmark's screen. [figures]: a name and a value each; [shared]: what can be given to others, as JSON. */
data class BenchScreen(
    val text: Phrase,
    val figures: List<Pair<Phrase, Phrase>>,
    val isRunning: Boolean,
    val canStart: Boolean,
    val canStop: Boolean,
    val shared: String?,
) {
    companion object {
        /** [model]: the name of the one that would be measured, null without one. */
        fun of(state: BenchState, model: String?, isEngineFree: Boolean): BenchScreen {
            val runs = (state as? BenchState.Done)?.runs.orEmpty()
            return BenchScreen(
                text = textOf(state, model),
                figures = if (runs.isEmpty()) emptyList() else figuresOf(Measurement.medians(runs)),
                isRunning = state is BenchState.Running,
                canStart = state !is BenchState.Running && model != null && isEngineFree,
                canStop = state is BenchState.Running && !state.isStopping,
                shared = if (runs.isEmpty()) null else Measurement.toJson(runs),
            )
        }

        private fun textOf(state: BenchState, model: String?): Phrase = when (state) {
            is BenchState.Idle -> model?.let { phrase("bench_idle", it) } ?: phrase("bench_no_model")
            is BenchState.Running ->
                if (state.isStopping) phrase("bench_stopping") else phrase("bench_running", state.name, state.done + 1, state.runs)
            is BenchState.Done -> if (state.runs.isEmpty()) phrase("bench_stopped") else phrase("bench_done", state.name, state.runs.size)
            is BenchState.Failed -> phrase("bench_failed", state.name, state.message)
        }

        private fun figuresOf(median: Measurement) = listOf(
            phrase("bench_init") to phrase("seconds", median.initSeconds),
            phrase("bench_first_token") to phrase("seconds", median.firstTokenSeconds),
            phrase("bench_prefill") to phrase("tokens_per_second", median.prefillTokensPerSecond),
            phrase("bench_decode") to phrase("tokens_per_second", median.decodeTokensPerSecond),
            phrase("bench_anon") to phrase("bytes", formatBytes(median.anonBytes)),
            phrase("bench_file") to phrase("bytes", formatBytes(median.fileBytes)),
        )
    }
}
