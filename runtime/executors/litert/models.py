"""One of the models in a decoder section that holds several: its signatures, by the names that a lone model's have."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from gemma_edge.profiles.signatures import own_name
from gemma_edge.runtime.executors.litert.library import BoundSignature, CompiledSection, Signature


class ModelSection:
    """A compiled section seen from one of its models. name: "" for the large one, whose signatures have no prefix."""

    def __init__(self, section: CompiledSection, name: str) -> None:
        self._section = section
        self._prefix = f"{name}/" if name else ""

    @cached_property
    def signatures(self) -> Mapping[str, Signature]:
        """By name, "decode" and so on."""
        return {name: self._section.signatures[stored] for name, stored in self._stored.items()}

    @cached_property
    def _stored(self) -> Mapping[str, str]:
        """Names in the file by those here."""
        names = {}
        for stored, signature in self._section.signatures.items():
            if stored.startswith(self._prefix):
                rows = signature.inputs["input_pos"].shape[0] if "input_pos" in signature.inputs else 0
                names[own_name(stored.removeprefix(self._prefix), rows)] = stored
        return names

    def bind(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> BoundSignature:
        """As `CompiledSection.bind`."""
        return self._section.bind(self._stored[name], arrays)
