"""Footprints, the check against a budget, and what the refusal says."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from gemma_edge.profiles.budget import refusal_tables
from gemma_edge.profiles.device import Footprint, MemoryBudget, OverBudget, Part, footprint_table
from gemma_edge.profiles.sizes import MIB

WEIGHTS = Part("weights", 0, 1600 * MIB, "computed")
KV = Part("KV cache", 104 * MIB, 0, "computed")
RUNTIME = Part("runtime", 344 * MIB, 0, "measured")
FOOTPRINT = Footprint((WEIGHTS, KV, RUNTIME))  # exactly 2 GiB


def test_sums() -> None:
    assert FOOTPRINT.anon_bytes == 448 * MIB
    assert FOOTPRINT.file_bytes == 1600 * MIB
    assert FOOTPRINT.total_bytes == 2048 * MIB
    assert WEIGHTS.total_bytes == 1600 * MIB


def test_empty_parts_are_left_out() -> None:
    assert Footprint.of([WEIGHTS, Part("vision", 0, 0, "none")]).parts == (WEIGHTS,)


def test_a_part_cannot_be_negative_or_nameless() -> None:
    with pytest.raises(ValueError, match="KV: bytes cannot be negative"):
        Part("KV", -1, 0, "")
    with pytest.raises(ValueError, match="a part needs a name"):
        Part("", 1, 0, "")


def test_a_part_cannot_be_counted_twice() -> None:
    with pytest.raises(ValueError, match="parts named twice: weights"):
        Footprint((WEIGHTS, WEIGHTS))


def test_a_budget_is_positive() -> None:
    with pytest.raises(ValueError, match="budget_bytes: found 0; expected a positive number"):
        MemoryBudget(0)


def test_the_budget_itself_still_fits() -> None:
    MemoryBudget(2048 * MIB).check(FOOTPRINT, "model")
    assert not MemoryBudget(2048 * MIB - 1).fits(FOOTPRINT)


def test_refusal_without_suggestions() -> None:
    with pytest.raises(OverBudget) as caught:
        MemoryBudget(1024 * MIB).check(FOOTPRINT, "e2b-int4 at 4096 tokens on board")
    assert str(caught.value) == (
        "e2b-int4 at 4096 tokens on board: needs 2.00 GiB (448 MiB anonymous + 1.56 GiB file-backed), "
        "the budget is 1.00 GiB, 1.00 GiB too much; choose a smaller model, a shorter context or a larger profile"
    )
    assert caught.value.missing_bytes == 1024 * MIB
    assert caught.value.footprint is FOOTPRINT


def test_refusal_offers_only_what_fits_in_the_order_given() -> None:
    smaller = Footprint((Part("weights", 0, 900 * MIB, "computed"),))
    smallest = Footprint((Part("weights", 0, 500 * MIB, "computed"),))
    suggestions = [("--context 1024", FOOTPRINT), ("--target 1b-int8", smaller), ("--target 1b-int4", smallest)]
    with pytest.raises(OverBudget) as caught:
        MemoryBudget(1024 * MIB).check(FOOTPRINT, "model", suggestions)
    assert str(caught.value).endswith("too much; --target 1b-int8 would need 900 MiB (1 more way fits)")
    assert [suggestion.label for suggestion in caught.value.suggestions] == ["--target 1b-int8", "--target 1b-int4"]


def test_refusal_counts_further_suggestions() -> None:
    fits = Footprint((Part("weights", 0, 1 * MIB, "computed"),))
    with pytest.raises(OverBudget, match=r"a would need 1 MiB \(2 more ways fit\)$"):
        MemoryBudget(1024 * MIB).check(FOOTPRINT, "model", [("a", fits), ("b", fits), ("c", fits)])


def rendered(*tables: Table) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(*tables)
    assert isinstance(console.file, io.StringIO)
    lines = [line.strip("│┃ ").split() for line in console.file.getvalue().splitlines()]
    return [" ".join(word for word in line if word not in "│┃") for line in lines]


def test_table_shows_every_part_the_sum_and_what_is_missing() -> None:
    rows = rendered(footprint_table(FOOTPRINT, MemoryBudget(1024 * MIB)))
    assert "weights 0 B 1.56 GiB 1.56 GiB computed" in rows
    assert "KV cache 104 MiB 0 B 104 MiB computed" in rows
    assert "needed 448 MiB 1.56 GiB 2.00 GiB" in rows
    assert "budget 1.00 GiB" in rows
    assert "missing 1.00 GiB" in rows


def test_a_refusal_shows_what_would_fit_and_what_that_leaves() -> None:
    smaller = Footprint((Part("weights", 0, 900 * MIB, "computed"), Part("KV cache", 24 * MIB, 0, "computed")))
    with pytest.raises(OverBudget) as caught:
        MemoryBudget(1024 * MIB).check(FOOTPRINT, "model", [("--target 1b-int8", smaller)])
    rows = rendered(*refusal_tables(caught.value))
    assert "missing 1.00 GiB" in rows
    assert rows[-2] == "--target 1b-int8 924 MiB 100 MiB"


def test_a_refusal_without_suggestions_is_one_table() -> None:
    with pytest.raises(OverBudget) as caught:
        MemoryBudget(1024 * MIB).check(FOOTPRINT, "model")
    assert len(list(refusal_tables(caught.value))) == 1


def test_table_shows_what_is_left() -> None:
    assert "left 1.00 GiB" in rendered(footprint_table(FOOTPRINT, MemoryBudget(3072 * MIB)))
