"""Reading config.json: right values come out typed, wrong ones are refused by key and value."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import transformers

from gemma_edge.converter.models.fields import LARGEST_REPEAT, ConfigError, Fields

S, F = "sliding_attention", "full_attention"
NOT_COUNTS = ["8", 8.0, True, None, [8]]


def message(read: Callable[[], object]) -> str:
    """The one line of the ConfigError that `read` raises."""
    with pytest.raises(ConfigError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_positive() -> None:
    assert Fields({"n": 1}).positive("n") == 1
    assert Fields({}).positive("n", 26) == 26


@pytest.mark.parametrize("value", [0, -1, *NOT_COUNTS])
def test_what_is_not_positive(value: object) -> None:
    assert message(lambda: Fields({"n": value}).positive("n", 26)) == (
        f"config.json: n is {value!r}, expected a positive integer; fix the checkpoint"
    )


@pytest.mark.parametrize("value", [2**31, 10**400])
def test_sizes_that_no_model_has(value: int) -> None:
    """Formats count in int32; what cannot be a float32 at all is a number that Python reads without a murmur."""
    assert Fields({"n": 2**31 - 1}).positive("n") == 2**31 - 1
    expected = f"config.json: n is {value}, expected at most 2147483647; fix the checkpoint"
    assert message(lambda: Fields({"n": value}).positive("n")) == expected
    assert message(lambda: Fields({"n": value}).count("n", 0)) == expected


def test_what_a_model_repeats_has_a_limit_of_its_own() -> None:
    assert message(lambda: Fields({"n": 1001}).positive("n", 26, LARGEST_REPEAT)) == (
        "config.json: n is 1001, expected at most 1000; fix the checkpoint"
    )


@pytest.mark.parametrize("value", [float("inf"), 1e39, 10**400])
def test_numbers_beyond_float32(value: float) -> None:
    assert Fields({"x": 3e38}).number("x", 1.0) == 3e38
    assert message(lambda: Fields({"x": value}).number("x", 1.0)) == (
        f"config.json: x is {value!r}, expected at most 3.402823466e+38; fix the checkpoint"
    )


@pytest.mark.parametrize("value", [5e-324, 1e-39, 9e-31])
def test_numbers_whose_reciprocals_are_beyond_float32(value: float) -> None:
    assert Fields({"x": 1e-30}).number("x", 1.0) == 1e-30
    assert message(lambda: Fields({"x": value}).number("x", 1.0)) == (
        f"config.json: x is {value!r}, expected at least 1e-30; fix the checkpoint"
    )


def test_an_absent_key_without_a_default_is_refused() -> None:
    assert message(lambda: Fields({}).positive("n")).startswith("config.json: n is None, expected a positive integer")


def test_count() -> None:
    assert Fields({"n": 0}).count("n", 15) == 0
    assert Fields({}).count("n", 15) == 15


@pytest.mark.parametrize("value", [-1, *NOT_COUNTS])
def test_what_is_no_count(value: object) -> None:
    assert message(lambda: Fields({"n": value}).count("n", 15)) == (
        f"config.json: n is {value!r}, expected an integer >= 0; fix the checkpoint"
    )


def test_number() -> None:
    assert Fields({"x": 2}).number("x", 1.0) == 2.0
    assert isinstance(Fields({"x": 2}).number("x", 1.0), float)
    assert Fields({}).number("x", 1e-6) == 1e-6


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), "1", True, None])
def test_what_is_no_number(value: object) -> None:
    assert message(lambda: Fields({"x": value}).number("x", 1.0)) == (
        f"config.json: x is {value!r}, expected a number > 0; fix the checkpoint"
    )


def test_optional_number() -> None:
    assert Fields({}).optional_number("x") is None
    assert Fields({"x": None}).optional_number("x") is None
    assert Fields({"x": 30}).optional_number("x") == 30.0
    assert Fields({}).optional_number("x", 30.0) == 30.0
    assert Fields({"x": None}).optional_number("x", 30.0) is None
    assert "x is 0, expected a number > 0" in message(lambda: Fields({"x": 0}).optional_number("x"))


def test_flag() -> None:
    assert Fields({"b": False}).flag("b", True) is False
    assert Fields({}).flag("b", True) is True
    for value in (0, 1, "true", None):
        assert message(partial(Fields({"b": value}).flag, "b", True)) == (
            f"config.json: b is {value!r}, expected true or false; fix the checkpoint"
        )


def test_expect() -> None:
    Fields({}).expect("act", ("gelu_pytorch_tanh",))
    Fields({"act": None}).expect("act", (False, None))
    assert message(lambda: Fields({"act": "silu"}).expect("act", ("gelu_pytorch_tanh",))) == (
        "config.json: act is 'silu', only 'gelu_pytorch_tanh' is supported; this model needs new code"
    )
    assert message(lambda: Fields({"act": True}).expect("act", (False, None))) == (
        "config.json: act is True, only False or None is supported; this model needs new code"
    )


def test_per_layer() -> None:
    assert Fields({"h": 512}).per_layer("h", 3) == (512, 512, 512)
    assert Fields({"h": [1, 2, 3]}).per_layer("h", 3) == (1, 2, 3)
    assert Fields({}).per_layer("h", 2, 0.5) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ([1, 2], 2),
        ([1, "2", 3], 3),
        ([1, True, 3], 3),
        (None, 3),
        ([], 0),
        ([1, float("nan"), 3], 3),
        (float("inf"), 3),
        ([1, 10**400, 3], 3),
    ],
)
def test_per_layer_needs_one_number_for_each(value: object, entries: int) -> None:
    assert message(lambda: Fields({"h": value}).per_layer("h", 3)) == (
        f"config.json: h has {entries} entries or not only numbers, expected one number for each of the 3 layers; "
        "fix the checkpoint"
    )


def test_layer_types_default_to_a_period() -> None:
    assert Fields({}).layer_types(7, 3) == (S, S, F, S, S, F, S)
    assert Fields({"layer_types": None}).layer_types(2, 5) == (S, S)
    assert Fields({"layer_types": [F, S]}).layer_types(2, 5) == (F, S)


@pytest.mark.parametrize("value", [[S], [S, S, S], [S, "chunked_attention"], S, {S: F}, [[S], [F]]])
def test_layer_types_that_are_no_such_list(value: object) -> None:
    assert message(lambda: Fields({"layer_types": value}).layer_types(2, 5)) == (
        f"config.json: layer_types is {str(value)[:60]!r}, expected 2 of sliding_attention, full_attention; "
        "fix the checkpoint"
    )


@pytest.mark.parametrize(
    ("spelled", "sliding", "full"),
    [
        ({}, (10_000.0, 1.0), (1_000_000.0, 1.0)),
        (  # transformers 5
            {
                "rope_parameters": {
                    S: {"rope_type": "default", "rope_theta": 5_000.0},
                    F: {"rope_type": "linear", "rope_theta": 200_000.0, "factor": 8.0},
                }
            },
            (5_000.0, 1.0),
            (200_000.0, 8.0),
        ),
        (  # transformers 4, where scaling is full attention's alone
            {
                "rope_theta": 200_000,
                "rope_local_base_freq": 5_000,
                "rope_scaling": {"rope_type": "linear", "factor": 8},
            },
            (5_000.0, 1.0),
            (200_000.0, 8.0),
        ),
        ({"rope_theta": 9.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, (10_000.0, 1.0), (9.0, 2.0)),
        ({"rope_theta": 9.0, "rope_scaling": None}, (10_000.0, 1.0), (9.0, 1.0)),
        # both spellings: the old keys fill what the new one lacks, and the scaling holds, as in transformers 5
        (
            {
                "rope_parameters": {S: {"rope_type": "default"}, F: {"rope_type": "default"}},
                "rope_theta": 7.0,
                "rope_local_base_freq": 3.0,
            },
            (3.0, 1.0),
            (7.0, 1.0),
        ),
        (
            {
                "rope_parameters": {F: {"rope_type": "default", "rope_theta": 9.0}},
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            (10_000.0, 1.0),
            (9.0, 8.0),
        ),
        # factor without "linear" does nothing, as in transformers
        ({"rope_parameters": {F: {"rope_theta": 9.0, "factor": 8.0}}}, (10_000.0, 1.0), (9.0, 1.0)),
    ],
)
def test_both_spellings_of_rope(
    spelled: dict[str, Any], sliding: tuple[float, float], full: tuple[float, float]
) -> None:
    fields = Fields(spelled)
    assert fields.rope(S, 10_000.0) == sliding
    assert fields.rope(F, 1_000_000.0) == full


@pytest.mark.parametrize("config_class", [transformers.Gemma3TextConfig, transformers.Gemma3nTextConfig])
@pytest.mark.parametrize("named", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}, None])
@pytest.mark.parametrize("old_keys", [{}, {"rope_theta": 7.0, "rope_local_base_freq": 3.0}])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 8.0}])
def test_a_mixture_of_spellings_means_what_transformers_says(
    config_class: Any, named: dict[str, Any] | None, old_keys: dict[str, float], scaling: dict[str, Any] | None
) -> None:
    spelled = {"rope_parameters": named and {S: dict(named), F: dict(named)}, "rope_scaling": scaling} | old_keys
    theirs = config_class(**deepcopy(spelled)).rope_parameters
    for kind, default in ((S, 10_000.0), (F, 1_000_000.0)):
        factor = theirs[kind].get("factor", 1.0) if theirs[kind].get("rope_type") == "linear" else 1.0
        assert Fields(spelled).rope(kind, default) == (theirs[kind]["rope_theta"], factor)


@pytest.mark.parametrize(
    "spelled",
    [
        {"rope_parameters": {F: {"rope_type": "yarn", "rope_theta": 1e6}}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    ],
)
def test_another_rope_is_refused(spelled: dict[str, Any]) -> None:
    assert message(lambda: Fields(spelled).rope(F, 1e6)) == (
        "config.json: rope_type of full_attention is 'yarn', only 'default' or 'linear' is supported; "
        "this model needs new code"
    )


def test_rope_numbers_are_checked() -> None:
    linear = {"rope_type": "linear", "rope_theta": 1e6, "factor": 0}
    assert "rope_theta is 0, expected a number > 0" in message(lambda: Fields({"rope_theta": 0}).rope(F, 1e6))
    assert "factor is 0, expected a number > 0" in message(lambda: Fields({"rope_parameters": {F: linear}}).rope(F, 1))


@pytest.mark.parametrize("value", ["linear", 8, [1.0]])
def test_rope_that_is_no_object(value: object) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        assert message(partial(Fields({key: value}).rope, F, 1e6)) == (
            f"config.json: {key} is {value!r}, expected an object or null; fix the checkpoint"
        )
    assert message(lambda: Fields({"rope_parameters": {F: value}}).rope(F, 1e6)) == (
        f"config.json: rope_parameters: full_attention is {value!r}, expected an object or null; fix the checkpoint"
    )
