"""Google's engine behind our names: the same bundles and calls, run by litert_lm.

It gives no logits, so it cannot sit under `Executor`; it stands beside `Engine` instead, with the methods that
litert_lm has. Settings and messages are translated at this border, and its errors become ours.
"""

import dataclasses
import platform
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.chat.calls.result import json_result
from gemma_edge.runtime.chat.conversation import Sendable
from gemma_edge.runtime.chat.figures import BenchmarkInfo
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.messages import Message, read_message
from gemma_edge.runtime.chat.session import Responses
from gemma_edge.runtime.chat.tools import Tool, ToolEventHandler, run_tool, tool_from_function
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.executors.base import ExecutorError
from gemma_edge.runtime.executors.litert.weight_cache import cache_opened, default_cache_dir
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, ModelType, SectionKind
from gemma_edge.runtime.formats.trust.signed import check_trusted
from gemma_edge.runtime.text.constraints import ResponseFormat
from gemma_edge.runtime.text.sampler import SamplerConfig


def check_cpu(machine: str | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Refuse a CPU on which litert_lm kills the process (tests/runtime/test_aarch64.py shows it).

    Its aarch64 library was compiled for ARMv8.1: on an ARMv8.0 core, such as the Raspberry Pi 4's, it aborts when the
    first call loads it.
    The kernel lists ARMv8.1's atomic instructions (LSE) as `atomics`.
    """
    if (machine or platform.machine()) not in ("aarch64", "arm64") or not cpuinfo.exists():
        return
    features = [line for line in cpuinfo.read_text().splitlines() if line.startswith("Features")]
    if not all("atomics" in line.split() for line in features):
        raise ExecutorError(
            "litert_lm needs ARMv8.1 atomics (LSE), this CPU has none; use the litert executor, which does not"
        )


def _import() -> ModuleType:
    check_cpu()
    try:
        import litert_lm
    except ImportError as error:
        raise ExecutorError(f"litert_lm cannot be loaded ({error}); pip install 'gemma-edge[litert]'") from error
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    module: ModuleType = litert_lm
    return module


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ExecutorError(f"litert_lm: {doing} failed ({error}); see its log on stderr for the cause") from error


def _as_litert_lm(module: ModuleType, value: Any) -> Any:
    """A setting of ours as litert_lm's class of the same name."""
    if isinstance(value, ResponseFormat):
        make = module.ResponseFormat.regex if value.type == ResponseFormat.Type.REGEX else module.ResponseFormat.json
        return make(value.schema_or_pattern)
    if isinstance(value, Backend):
        return getattr(module.Backend, type(value).__name__)(**dataclasses.asdict(value))  # type: ignore[call-overload]
    if isinstance(value, SamplerConfig):
        value = dataclasses.replace(value, top_k=value.candidates)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return getattr(module, type(value).__name__)(**dataclasses.asdict(value))
    return value


def _cpu_for(model_path: str, model_type: ModelType) -> Backend | None:
    """litert_lm refuses to load where it is told to run an encoder that is not there."""
    try:
        bundle = Bundle.open(Path(model_path))
    except BundleError:
        return None  # litert_lm says it in its own words
    return Backend.CPU() if bundle.find(SectionKind.TFLITE_MODEL, model_type) is not None else None


class LitertLmEngine:
    """As `Engine`, run by litert_lm."""

    def __init__(
        self,
        model_path: str,
        backend: Backend = Backend.CPU(),  # noqa: B008  frozen, and litert_lm's default
        max_num_tokens: int | None = None,
        max_num_images: int | None = None,
        cache_dir: str | None = None,
        vision_backend: Backend | None = None,
        audio_backend: Backend | None = None,
    ) -> None:
        """As `Engine`; a vision or audio backend of None is the CPU where the bundle has that encoder."""
        self._module = _import()
        self.model_path = model_path = str(user_path(model_path))
        check_trusted(model_path)
        self._cache = ExitStack()  # open as long as litert_lm may write there
        if cache_dir is None:
            cache_dir = str(default_cache_dir() / "litert_lm")
        if not cache_dir.startswith(":"):
            cache_dir = str(self._cache.enter_context(cache_opened(user_path(cache_dir))).all_own())
        with _errors(f"loading {model_path}"):
            self._engine = self._module.Engine(
                model_path,
                backend=_as_litert_lm(self._module, backend),
                max_num_tokens=max_num_tokens,
                max_num_images=max_num_images,
                cache_dir=cache_dir,
                vision_backend=_as_litert_lm(
                    self._module, vision_backend or _cpu_for(model_path, ModelType.VISION_ENCODER)
                ),
                audio_backend=_as_litert_lm(
                    self._module, audio_backend or _cpu_for(model_path, ModelType.AUDIO_ENCODER)
                ),
                enable_benchmark=True,
            )

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts every sequence."""
        token_id: int | None = self._engine.bos_token_id
        return token_id

    @property
    def eos_token_ids(self) -> list[list[int]]:
        """The token sequences that end a reply."""
        return [list(token_ids) for token_ids in self._engine.eos_token_ids]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without a start token."""
        with _errors("tokenizing"):
            return list(self._engine.tokenize(text))

    def detokenize(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        with _errors("detokenizing"):
            return str(self._engine.detokenize(token_ids))

    def create_conversation(
        self,
        *,
        messages: Sequence[Json | Message] | None = None,
        tools: Sequence[Callable[..., Any] | Tool] | None = None,
        tool_event_handler: ToolEventHandler | None = None,
        **options: Any,
    ) -> "LitertLmConversation":
        """As `Engine.create_conversation`; max_tool_rounds is not litert_lm's and is refused by it."""
        module = self._module
        theirs = {name: _as_litert_lm(module, value) for name, value in options.items()}
        # enable=True would constrain tool calls as well, and creating the conversation fails for Gemma 3 and 3n. The
        # native side needs the provider only; the Python side looks at the flag when a response_format is sent.
        config = theirs.get("constrained_decoding_config")
        if config is not None:
            theirs["constrained_decoding_config"] = dataclasses.replace(config, enable=False)
        with _errors("creating a conversation"):
            conversation = self._engine.create_conversation(
                messages=None if messages is None else [read_message(message) for message in messages],
                tools=None if tools is None else [_their_tool(module, tool) for tool in tools],
                tool_event_handler=None if tool_event_handler is None else _their_handler(module, tool_event_handler),
                **theirs,
            )
        conversation.constrained_decoding_config = config
        return LitertLmConversation(module, conversation)

    def create_session(
        self,
        *,
        apply_prompt_template: bool = True,
        sampler_config: SamplerConfig | None = None,
        max_output_tokens: int | None = None,
    ) -> "LitertLmSession":
        """As `Engine.create_session`."""
        with _errors("creating a session"):
            session = self._engine.create_session(
                apply_prompt_template=apply_prompt_template,
                sampler_config=_as_litert_lm(self._module, sampler_config),
                max_output_tokens=max_output_tokens,
            )
        return LitertLmSession(session)

    def close(self) -> None:
        """Release the model. Close sessions and conversations first: litert_lm crashes otherwise."""
        self._engine.close()
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Wrapped:
    """What litert_lm's sessions and conversations have in common."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def get_benchmark_info(self) -> BenchmarkInfo:
        """Figures of the last turn."""
        with _errors("reading benchmark figures"):
            return BenchmarkInfo(**dataclasses.asdict(self._inner.get_benchmark_info()))

    def cancel_process(self) -> None:
        """End the call that is running in another thread. litert_lm 0.18.1 answers nothing here afterwards."""
        self._inner.cancel_process()

    def close(self) -> None:
        """Release it."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LitertLmSession(_Wrapped):
    """As `Session`, without logits and token ids."""

    def run_prefill(self, contents: list[str]) -> None:
        """As `Session.run_prefill`."""
        with _errors("prefill"):
            self._inner.run_prefill(contents)

    def run_decode(self) -> Responses:
        """As `Session.run_decode`."""
        with _errors("decoding"):
            return Responses(texts=list(self._inner.run_decode().texts))

    def run_decode_async(self) -> Iterator[Responses]:
        """As `Session.run_decode_async`."""
        with _errors("decoding"):
            for response in self._inner.run_decode_async():
                yield Responses(texts=list(response.texts))

    def run_text_scoring(self, target_text: list[str], store_token_lengths: bool = False) -> Responses:
        """litert_lm's: one target, which becomes part of the session."""
        with _errors("scoring"):
            return Responses(**dataclasses.asdict(self._inner.run_text_scoring(target_text, store_token_lengths)))


class LitertLmConversation(_Wrapped):
    """As `Conversation`, without token ids, history and rewinding."""

    def __init__(self, module: ModuleType, inner: Any) -> None:
        super().__init__(inner)
        self._module = module

    def send_message(self, message: Sendable, **options: Any) -> Message:
        """As `Conversation.send_message`, with the same options."""
        with _errors("sending a message"):
            return Message.from_json(self._inner.send_message(read_message(message), **self._options(options)))

    def send_message_async(self, message: Sendable, **options: Any) -> Generator[Message, None, None]:
        """As `Conversation.send_message_async`, with the same options, but leaving the loop early ends no reply."""
        with _errors("sending a message"):
            for chunk in self._inner.send_message_async(read_message(message), **self._options(options)):
                yield Message.from_json(chunk)

    def render_message_to_string(self, message: Sendable) -> str:
        """The text that sending this message now would add to the prompt."""
        with _errors("rendering a message"):
            return str(self._inner.render_message_to_string(read_message(message)))

    @property
    def token_count(self) -> int:
        """Tokens of the conversation so far, prompt and replies."""
        return int(self._inner.token_count)

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _as_litert_lm(self._module, value) for name, value in options.items()}


def _their_tool(module: ModuleType, tool: Callable[..., Any] | Tool) -> Any:
    ours = tool if isinstance(tool, Tool) else tool_from_function(tool)

    class Adapter(module.Tool):  # type: ignore[name-defined,misc]  # the base exists at run time only
        def get_tool_description(self) -> dict[str, Any]:
            return ours.get_tool_description()

        def execute(self, param: Mapping[str, Any]) -> Any:
            return json_result(run_tool(ours, param))

    return Adapter()


def _their_handler(module: ModuleType, ours: ToolEventHandler) -> Any:
    class Adapter(module.ToolEventHandler):  # type: ignore[name-defined,misc]  # the base exists at run time only
        def approve_tool_call(self, tool_call: dict[str, Any]) -> bool:
            return ours.approve_tool_call(tool_call)

        def process_tool_response(self, tool_response: dict[str, Any]) -> Any:
            return ours.process_tool_response(tool_response)

    return Adapter()
