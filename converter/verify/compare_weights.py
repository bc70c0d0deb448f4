"""A model that our runtime does not run, in a process of its own for comparisons, as its weights say in numpy."""

from collections.abc import Iterator
from pathlib import Path

from gemma_edge.converter.verify.measure.weights_subject import WeightsSubject
from gemma_edge.runtime.measure.compare import Cost, Logits
from gemma_edge.runtime.measure.compare_process import answer, answering, arguments, size_bytes
from gemma_edge.runtime.memory.reading import read_memory


class _Server:
    """See compare_process.Served."""

    def __init__(self, subject: WeightsSubject) -> None:
        self._subject = subject

    def tokenize(self, text: str) -> list[int]:
        model = self._subject.text_model
        return [*model.start_tokens, *model.tokenizer.encode(text)]

    def logits(self, token_ids: list[int]) -> Iterator[Logits]:
        yield from self._subject.score(token_ids)

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        return self._subject.greedy(token_ids, count)

    def cost(self) -> Cost:
        """No speed: nothing is run as it would be elsewhere."""
        memory = read_memory()
        return Cost(size_bytes(self._subject.path), memory.anon_bytes, memory.file_bytes, 0.0)


def main() -> None:
    """The process."""
    pipe, path, threads, _ = arguments()
    with answering(pipe, path):
        answer(pipe, _Server(WeightsSubject(Path(path), threads)))


if __name__ == "__main__":
    main()
