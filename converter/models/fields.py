"""Typed reading of config.json, with errors that name the key."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma_edge.profiles.errors import GemmaEdgeError

LAYER_KINDS = ("sliding_attention", "full_attention")

LARGEST_INTEGER = 2**31 - 1  # both formats count in int32
LARGEST_NUMBER = float(np.finfo(np.float32).max)
SMALLEST_NUMBER = 1e-30  # what divides by it stays a float32
LARGEST_REPEAT = 1000
"""Of what a model repeats: each layer is a dozen tensors to look for, so nonsense ends here and not in the memory."""


class ConfigError(GemmaEdgeError):
    """A config.json that no model family here can take."""


class Fields:
    """One JSON object; every getter returns a value of the right type or raises ConfigError with key and value."""

    def __init__(self, values: Mapping[str, Any], file: str = "config.json") -> None:
        """file: whose object it is, for messages."""
        self._values = values
        self._file = file

    def positive(self, key: str, default: int | None = None, most: int = LARGEST_INTEGER) -> int:
        """An integer from 1 to `most`."""
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self._file}: {key} is {value!r}, expected a positive integer; fix the checkpoint")
        self._check_size(key, value, most)
        return value

    def count(self, key: str, default: int) -> int:
        """An integer of at least 0."""
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{self._file}: {key} is {value!r}, expected an integer >= 0; fix the checkpoint")
        self._check_size(key, value, LARGEST_INTEGER)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number greater than 0."""
        value = self._values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ConfigError(f"{self._file}: {key} is {value!r}, expected a number > 0; fix the checkpoint")
        self._check_size(key, value, LARGEST_NUMBER)
        if value < SMALLEST_NUMBER:
            raise ConfigError(
                f"{self._file}: {key} is {value!r}, expected at least {SMALLEST_NUMBER:g}; fix the checkpoint"
            )
        return float(value)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """A number greater than 0, or None where it is null; null is not absent, which means `default`."""
        value = self._values.get(key, default)
        return None if value is None else Fields({key: value}, self._file).number(key, 0.0)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._file}: {key} is {value!r}, expected true or false; fix the checkpoint")
        return value

    def has(self, key: str) -> bool:
        """Whether it is there."""
        return key in self._values

    def expect(self, key: str, allowed: tuple[Any, ...]) -> None:
        """Refuse a setting that would silently give other numbers."""
        value = self._values.get(key, allowed[0])
        if value not in allowed:
            choices = " or ".join(repr(item) for item in allowed)
            raise ConfigError(
                f"{self._file}: {key} is {value!r}, only {choices} is supported; this model needs new code"
            )

    def per_layer(self, key: str, layers: int, default: float | None = None) -> tuple[float, ...]:
        """A number for each layer; one number stands for all."""
        value = self._values.get(key, default)
        items = value if isinstance(value, list) else [value] * layers
        if len(items) != layers or not all(_is_finite(x) for x in items):
            raise ConfigError(
                f"{self._file}: {key} has {len(items)} entries or not only numbers, expected one number for each of "
                f"the {layers} layers; fix the checkpoint"
            )
        return tuple(items)

    def layer_types(self, layers: int, period: int) -> tuple[str, ...]:
        """The kind of attention of each layer; absent means every `period`-th layer is full, as in transformers."""
        value = self._values.get("layer_types")
        if value is None:
            return tuple(LAYER_KINDS[(i + 1) % period == 0] for i in range(layers))
        if not isinstance(value, list) or len(value) != layers or any(x not in LAYER_KINDS for x in value):
            raise ConfigError(
                f"{self._file}: layer_types is {str(value)[:60]!r}, expected {layers} of {', '.join(LAYER_KINDS)}; "
                "fix the checkpoint"
            )
        return tuple(value)

    def proportional_rope(self, kind: str, default: Mapping[str, Any]) -> tuple[float, float, float]:
        """(theta, factor, share of pairs that turn) of one kind of layer, of a family that has rope_parameters alone.

        default: its rope_parameters where config.json has none.
        """
        given = self.nested("rope_parameters")
        values = Fields(given, f"{self._file}: rope_parameters").nested(kind) if given else default
        rope, file = dict(values), f"{self._file}: rope_parameters: {kind}"
        fields = Fields(rope, file)
        fields.expect("rope_type", ("default", "proportional"))
        if rope.get("rope_type", "default") == "default":
            return fields.number("rope_theta"), 1.0, 1.0
        share = fields.number("partial_rotary_factor", 1.0)
        if share > 1.0:
            raise ConfigError(f"{file}: partial_rotary_factor is {share}, expected at most 1; fix the checkpoint")
        return fields.number("rope_theta"), fields.number("factor", 1.0), share

    def rope(self, kind: str, default_theta: float) -> tuple[float, float]:
        """(theta, linear factor) of one kind of layer.

        transformers 5 writes rope_parameters per kind; version 4 wrote rope_theta, rope_local_base_freq and
        rope_scaling, where the scaling applied to full attention only. Where both are there, transformers 5 takes the
        old keys for what the new one lacks, and the scaling all the same.
        """
        full = kind == "full_attention"
        rope = dict(Fields(self.nested("rope_parameters"), f"{self._file}: rope_parameters").nested(kind))
        if full:
            rope |= self.nested("rope_scaling")
        if "rope_theta" not in rope:
            rope["rope_theta"] = self._values.get("rope_theta" if full else "rope_local_base_freq", default_theta)
        inner = Fields(rope, self._file)
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ("default", "linear"):
            raise ConfigError(
                f"{self._file}: rope_type of {kind} is {rope_type!r}, only 'default' or 'linear' is supported; "
                "this model needs new code"
            )
        return inner.number("rope_theta", default_theta), inner.number("factor", 1.0) if rope_type == "linear" else 1.0

    def nested(self, key: str) -> Mapping[str, Any]:
        """An object; absent and null are an empty one."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{self._file}: {key} is {value!r}, expected an object or null; fix the checkpoint")
        return value or {}

    def _check_size(self, key: str, value: float, most: float) -> None:
        if value > most:
            raise ConfigError(f"{self._file}: {key} is {value!r}, expected at most {most:.10g}; fix the checkpoint")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER
