"""One of the models in a decoder section that holds several: its signatures, by the names that a lone model's have."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from gemma_edge.runtime.executors.litert.library import BoundSignature, CompiledSection, Signature


class ModelSection:
    """A compiled section seen from one of its models. name: "" for the large one, whose signatures have no prefix."""

    def __init__(self, section: CompiledSection, name: str) -> None:
        self._section = section
        self._prefix = f"{name}/" if name else ""

    @cached_property
    def signatures(self) -> Mapping[str, Signature]:
        """By name, "decode" and so on."""
        prefix, found = self._prefix, self._section.signatures
        return {name.removeprefix(prefix): signature for name, signature in found.items() if name.startswith(prefix)}

    def bind(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> BoundSignature:
        """As `CompiledSection.bind`."""
        return self._section.bind(self._prefix + name, arrays)
