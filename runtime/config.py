"""Where a model runs. Names and defaults are litert_lm's."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

from gemma_edge.profiles.errors import GemmaEdgeError


class ConfigError(GemmaEdgeError, ValueError, RuntimeError):
    """A setting of the engine cannot be honoured."""


class Backend:
    """Base of CPU, GPU and NPU; made as `Backend.CPU(thread_count=4)`."""

    CPU: "ClassVar[type[CPU]]"
    GPU: "ClassVar[type[GPU]]"
    NPU: "ClassVar[type[NPU]]"

    def get_name(self) -> str:
        """'cpu', 'gpu' or 'npu'."""
        return type(self).__name__.lower()


MOST_THREADS = 1024
"""No machine has more cores to use; where the system makes no more threads, XNNPACK ends the process."""


@dataclass(frozen=True, kw_only=True)
class CPU(Backend):
    """The processor. `thread_count` None: every core this process may use, at most 4 (more than the big cores of an
    edge device slow XNNPACK down)."""

    thread_count: int | None = None

    def __post_init__(self) -> None:
        if self.thread_count is not None and not 1 <= self.thread_count <= MOST_THREADS:
            raise ConfigError(
                f"thread_count is {self.thread_count}, expected 1 to {MOST_THREADS}; leave it out for the default"
            )


@dataclass(frozen=True, kw_only=True)
class GPU(Backend):
    """The graphics processor: with the litert-lm executor only."""

    gpu_decode_steps_per_sync: int | None = None


@dataclass(frozen=True, kw_only=True)
class NPU(Backend):
    """A neural processor: with the litert-lm executor only."""

    litert_dispatch_lib_dir: str | None = None


Backend.CPU = CPU
Backend.GPU = GPU
Backend.NPU = NPU


def backend_of(backend: Backend | type[Backend]) -> Backend:
    """An instance; a class is made one, with a DeprecationWarning, as in litert_lm."""
    if not isinstance(backend, type):
        return backend
    warnings.warn(
        f"Passing Backend class {backend.__name__} is deprecated; pass an instance, {backend.__name__}()",
        DeprecationWarning,
        stacklevel=4,
    )
    return backend()


def check_max_output_tokens(limit: int | None) -> None:
    """Raises ConfigError below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"max_output_tokens is {limit}, expected at least 1; leave it out for no limit")
