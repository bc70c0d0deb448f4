"""A model in a process of its own, for comparisons: its memory is its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.measure.compare import ComparisonError, Cost, Logits
from gemma_edge.runtime.memory.reading import read_memory
from gemma_edge.runtime.packing.child import python_command

OURS: Final = "gemma_edge.runtime.measure.compare_process"


class ModelProcess:
    """A model, behind `Comparable`. module: which runs it; ours takes a bundle or an ONNX directory.

    Raises ComparisonError with what the process says.
    """

    def __init__(self, path: str, threads: int | None, cache_dir: str | None, module: str = OURS) -> None:
        self._path = path
        self._pipe, far_end = Pipe()
        with far_end:
            command = python_command(
                module,
                str(far_end.fileno()),
                json.dumps([path, threads, cache_dir]),
            )
            self._process = subprocess.Popen(command, pass_fds=(far_end.fileno(),), stdin=subprocess.DEVNULL)
        self._receive()  # loaded

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, start token included."""
        token_ids: list[int] = self._ask("tokenize", text)
        return token_ids

    def score(self, token_ids: Sequence[int]) -> Iterator[Logits]:
        self._pipe.send(("score", list(token_ids)))
        for _ in token_ids:
            yield np.frombuffer(self._receive(), np.float32)

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        continuation: list[int] = self._ask("greedy", list(token_ids), count)
        return continuation

    def cost(self) -> Cost:
        cost: Cost = self._ask("cost")
        return cost

    def _ask(self, what: str, *arguments: Any) -> Any:
        self._pipe.send((what, *arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.wait()
            raise ComparisonError(
                f"{self._path}: its process ended with status {self._process.returncode}; close other programs"
            ) from None
        if isinstance(answer, _Failure):
            raise ComparisonError(answer.message)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipe.close()  # ends the loop of the process
        self._process.wait()


class _Failure:
    """An error on its way to the other process, which may not know its class."""

    def __init__(self, message: str) -> None:
        self.message = message


def _serve(pipe: Connection, path: str, threads: int | None, cache_dir: str | None) -> None:
    """Answer until the other end closes."""
    with answering(pipe, path), Engine(path, Backend.CPU(thread_count=threads), cache_dir=cache_dir) as engine:
        answer(pipe, _Server(engine))


@contextmanager
def answering(pipe: Connection, path: str) -> Iterator[None]:
    """What goes wrong in the block is told to the other process; that this one has closed is no fault."""
    try:
        yield
    except (EOFError, ConnectionError):
        pass
    except GemmaEdgeError as error:
        pipe.send(_Failure(str(error)))
    except Exception as error:  # a fault of ours or of a library: without its name, memory would be blamed
        pipe.send(_Failure(f"{path}: {type(error).__name__}: {error}"))


class Served(Protocol):
    """What the process is asked, see ModelProcess."""

    def tokenize(self, text: str) -> list[int]:
        """Start token included."""

    def logits(self, token_ids: list[int]) -> Iterator[Logits]:
        """After each token."""

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        """The most likely continuation."""

    def cost(self) -> Cost:
        """So far."""


def answer(pipe: Connection, served: Served) -> None:
    """Until the other end closes, which raises."""
    pipe.send("loaded")
    while True:
        what, *arguments = pipe.recv()
        if what == "score":
            for logits in served.logits(*arguments):
                pipe.send(logits.tobytes())
        else:
            pipe.send(getattr(served, what)(*arguments))


def size_bytes(path: Path) -> int:
    """Of a file, or of all files of a directory."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def arguments() -> tuple[Connection, str, int | None, str | None]:
    """Of the process: its end of the pipe, and what to load with how many threads and which cache."""
    _, descriptor, request = sys.argv
    path, threads, cache_dir = json.loads(request)
    return Connection(int(descriptor)), path, threads, cache_dir


def main() -> None:
    """The process."""
    _serve(*arguments())


class _Server:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._decoded_tokens, self._decode_s = 0, 0.0

    def tokenize(self, text: str) -> list[int]:
        return [*self._engine.text_model.start_tokens, *self._engine.tokenize(text)]

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        sequence = self._engine.new_sequence()
        sequence.append(token_ids)
        for i in range(count):
            started = time.perf_counter()
            logits = sequence.logits()
            if i:  # the first reads the prompt
                self._decode_s += time.perf_counter() - started
                self._decoded_tokens += 1
            sequence.append([int(logits.argmax())])
        return list(sequence.token_ids[len(token_ids) :])

    def cost(self) -> Cost:
        memory = read_memory()
        speed = self._decoded_tokens / self._decode_s if self._decode_s else 0.0
        return Cost(size_bytes(Path(self._engine.model_path)), memory.anon_bytes, memory.file_bytes, speed)

    def logits(self, token_ids: list[int]) -> Iterator[Logits]:
        """Decoded one by one, after each token; not timed, as the other model computes at the same time."""
        sequence = self._engine.new_sequence()
        for token in token_ids:
            sequence.append([token])
            yield sequence.logits()


if __name__ == "__main__":
    from gemma_edge.runtime.measure import compare_process  # by its name: what is sent is known to both by that

    compare_process.main()
