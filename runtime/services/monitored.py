"""An engine whose replies are measured: the documents' monitoring for a program, with the figures of the server's."""

import time
from collections.abc import Sequence
from pathlib import Path

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.memory.reading import read_memory
from gemma_edge.runtime.serve.guard.rules import Rule
from gemma_edge.runtime.serve.monitor.metrics import MIB, PerformanceMetrics, QualityMetrics
from gemma_edge.runtime.serve.monitor.monitor import Monitor
from gemma_edge.runtime.serve.monitor.quality import quality, reply_perplexity
from gemma_edge.runtime.services.chats import Messages, conversation_of, sending
from gemma_edge.runtime.services.request import PLAIN, GenerationConfig


class MonitoringService:
    """For one thread at a time. The engine is the caller's, who also closes it.

    monitor: what remembers and sums up, raises alerts, and exports; by default one that is named by the bundle's file.
    rules: of a content policy, for the safety score.
    """

    def __init__(self, engine: Engine, monitor: Monitor | None = None, rules: Sequence[Rule] = ()) -> None:
        self._engine, self._rules = engine, tuple(rules)
        self.monitor = monitor or Monitor(Path(engine.model_path).name)

    def generate(self, messages: Messages, config: GenerationConfig = PLAIN) -> str:
        """The reply to a list of messages, remembered as `measure_performance` does. Raises what a reply raises."""
        started = time.perf_counter()
        try:
            reply, metrics = self._measured(messages, config, started)
        except GemmaEdgeError as error:
            self.monitor.add(self._metrics(started, 0, 0, error_message=str(error)))
            raise
        self.monitor.add(metrics)
        return reply

    def measure_performance(self, messages: Messages, config: GenerationConfig = PLAIN) -> PerformanceMetrics:
        """Figures of the reply to a list of messages; of one that failed, `success` False and why."""
        started = time.perf_counter()
        try:
            _, metrics = self._measured(messages, config, started)
        except GemmaEdgeError as error:
            metrics = self._metrics(started, 0, 0, error_message=str(error))
        self.monitor.add(metrics)
        return metrics

    def evaluate_quality(
        self, input_text: str, generated_text: str, reference_text: str | None = None, *, perplexity: bool = False
    ) -> QualityMetrics:
        """What can be counted of a reply's text; `monitor.quality` says what each count cannot see.

        perplexity: also run the reply through the model, and tell how expected it was. Raises ContextOverflowError.
        """
        surprise = self._perplexity(input_text, generated_text) if perplexity and generated_text else None
        found = quality(input_text, generated_text, reference_text, rules=self._rules, perplexity=surprise)
        self.monitor.add_quality(found)
        return found

    def _perplexity(self, input_text: str, generated_text: str) -> float:
        with (
            self._engine.create_conversation() as conversation,
            self._engine.create_session(apply_prompt_template=False) as session,
        ):
            session.run_prefill([conversation.render_message_to_string(input_text)])
            return reply_perplexity(session, generated_text)

    def _measured(self, messages: Messages, config: GenerationConfig, started: float) -> tuple[str, PerformanceMetrics]:
        conversation, last = conversation_of(self._engine, messages, config)
        with conversation:
            reply = conversation.send_message(last, **sending(config))
            usage, timing = conversation.usage, conversation.timing
        metrics = self._metrics(
            started,
            usage.prompt,
            usage.generated,
            tokens_per_second=timing.decode_tokens_per_s,
            first_token_s=timing.media_s + timing.time_to_first_token_s,
            token_s=tuple(timing.token_s),
        )
        return str(reply), metrics

    def _metrics(
        self,
        started: float,
        input_length: int,
        token_count: int,
        *,
        tokens_per_second: float = 0.0,
        first_token_s: float | None = None,
        token_s: tuple[float, ...] = (),
        error_message: str | None = None,
    ) -> PerformanceMetrics:
        return PerformanceMetrics(
            timestamp=time.time(),
            response_time=time.perf_counter() - started,
            memory_usage_mb=read_memory().hard_bytes / MIB,
            gpu_memory_mb=None,
            token_count=token_count,
            tokens_per_second=tokens_per_second,
            model_name=self.monitor.model_name,
            input_length=input_length,
            success=error_message is None,
            error_message=error_message,
            first_token_s=first_token_s,
            token_s=token_s,
        )
