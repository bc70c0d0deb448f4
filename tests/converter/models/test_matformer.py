"""Slices by name and by file, what is refused, and how the planner chooses one."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_edge.converter.calibrate.planning import published_plan
from gemma_edge.converter.cli import main
from gemma_edge.converter.models.matformer.files import slice_of
from gemma_edge.converter.models.matformer.slices import PUBLISHED, Slice, SliceError, frontier, published
from gemma_edge.converter.models.official import OFFICIAL, official_model
from gemma_edge.converter.plan.target import Target, TargetError

E4B: dict[str, Any] = {"model_type": "gemma3n_text", **OFFICIAL["e4b"].text}
GOOGLES_E196 = (
    "name,# Layers,# Effective Params (B),MMLU PT accuracy,FFN Hidden Dims,Layers Skipped\n"
    'Main model,35,3.98,62.30%,"[{whole}]",\n'
    'Config for E1.96B (layer-level),30,1.96,53.40%,"[{narrow}]","[20, 21, 22, 23, 24]"\n'
)


def google_table(folder: Path) -> Path:
    """Two rows as Google's file has them."""
    path = folder / "slices.csv"
    narrow = ["2_048 * 4"] * 4 + ["2_048 * 8"] + ["2_048 * 4"] * 25
    path.write_text(GOOGLES_E196.format(whole=", ".join(["2_048 * 8"] * 35), narrow=", ".join(narrow)))
    return path


def test_a_row_of_googles_table_is_the_published_slice(tmp_path: Path) -> None:
    found = slice_of(f"{google_table(tmp_path)}:Config for E1.96B (layer-level)")
    assert found.config(E4B) == published("e1.96").config(E4B)
    whole = slice_of(f"{google_table(tmp_path)}:Main model").config(E4B)
    assert (whole["num_hidden_layers"], whole["num_kv_shared_layers"]) == (35, 15)
    assert whole["intermediate_size"] == [16384] * 35


def test_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"ffn = {[8192] * 20 + [4096] * 10}\nskipped = [24, 20, 21, 22, 23]\n")
    assert slice_of(path) == Slice("mine", (8192,) * 20 + (4096,) * 10, (20, 21, 22, 23, 24))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("ffn = [1", "x.toml", r"x\.toml: not TOML \(.*\); correct the file"),
        ("", "x.toml", r"x\.toml: keeps no layer; give the feed-forward width of each layer that is kept"),
        ("ffn = [0]", "x.toml", r"x\.toml: ffn is not a list of whole numbers from 1 on; correct the file"),
        ("ffn = [true]", "x.toml", r"x\.toml: ffn is not a list of whole numbers from 1 on"),
        ("ffn = [1]\nskipped = 'a'", "x.toml", r"x\.toml: skipped is not a list of whole numbers from 0 on"),
        ("ffn = [1]\nskip = [1]", "x.toml", r"x\.toml: has 'skip'; expected ffn, name, skipped"),
        ("ffn = [1]\nname = 3", "x.toml", r"x\.toml: name is 3, expected a text"),
        ("ffn = [1]\nskipped = [1, 1]", "x.toml", r"x\.toml: leaves a layer out twice; name each once"),
        ("a,b\n1,2\n", "x.csv", r'x\.csv: expected rows with the columns "name", "FFN Hidden Dims" and'),
        (
            'name,FFN Hidden Dims,Layers Skipped\nx,"[2 ** 9]",\n',
            "x.csv",
            r"x\.csv: '\[2 \*\* 9\]' is not a list of whole numbers such as \[2_048 \* 8",
        ),
        (
            'name,FFN Hidden Dims,Layers Skipped\nx,"[__import__(1)]",\n',
            "x.csv",
            r"x\.csv: '\[__import__\(1\)\]' is not a list",
        ),
    ],
)
def test_files_that_describe_no_slice(content: str, name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SliceError, match=message):
        slice_of(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SliceError, match=r"no\.toml: no such file; give a TOML or CSV file, or the name of a"):
        slice_of(tmp_path / "no.toml")
    path = google_table(tmp_path)
    with pytest.raises(SliceError, match=r"slices\.csv: holds 2 slices; name one as .*slices\.csv:NAME, such as"):
        slice_of(path)
    with pytest.raises(SliceError, match=r"slices\.csv: has no slice 'E9'; it has Main model, Config for E1\.96B"):
        slice_of(f"{path}:E9")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(SliceError, match=r"large\.toml: larger than 1 MiB; expected the description of a slice"):
        slice_of(large)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SliceError, match=r"binary\.toml: cannot be read \(.*\); check it"):
        slice_of(tmp_path / "binary.toml")


def test_names() -> None:
    with pytest.raises(SliceError, match=r"slice e2\.98: the name of two slices; give e2\.98-layer or e2\.98-block"):
        published("e2.98")
    with pytest.raises(SliceError, match=r"slice 'e4': neither a file nor one of e1\.91, e1\.96, .*; use one of them"):
        published("e4")
    with pytest.raises(TargetError, match=r"target e3\.39-int4 and slice e3\.18: both name a slice; leave one out"):
        Target.parse("e3.39-int4", slice="e3.18")
    assert Target.parse("e2.98-block-int4").name == Target.parse("e4b-int4", slice="e2.98-block").name
    assert Target.parse("custom-int4", slice="e3.39").name == "custom-int4"


@pytest.mark.parametrize(
    ("cut", "changes", "message"),
    [
        (Slice("x", (8,) * 34), {}, r"slice x: 34 layers kept and 0 left out, the checkpoint has 35; give one"),
        (Slice("x", (8,) * 34, (35,)), {}, r"slice x: leaves out layer 35, the checkpoint has 0 to 34"),
        (Slice("x", (8,) * 34, (18,)), {}, r"slice x: leaves out layer 18, whose keys and values layers 20 to 34 read"),
        (Slice("x", (8,) * 34, (19,)), {}, r"slice x: leaves out layer 19, .*; keep 18, 19"),
        (Slice("x", (8,) * 34 + (16385,)), {}, r"slice x: width 16385 for layer 34, expected 1 to 16384, which the"),
        (PUBLISHED["e3.39"], {"num_hidden_layers": 30}, r"slice e3\.39: 35 layers kept and 0 left out, .* has 30"),
        (
            PUBLISHED["e3.39"],
            {"num_kv_shared_layers": 10},
            r"slice e3\.39: cut from E4B with 35 layers, 20 of which",
        ),
        (
            PUBLISHED["e3.39"],
            {"intermediate_size": [8192] + [16384] * 34},
            r"slice e3\.39: cut from a whole E4B, the checkpoint's feed-forward widths are 8192, 16384; give",
        ),
        (PUBLISHED["e3.39"], {"model_type": "gemma3_text"}, r"slice e3\.39: cut from Gemma 3n, .* is 'gemma3_text'"),
    ],
)
def test_checkpoints_that_cannot_be_cut_so(cut: Slice, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SliceError, match=message):
        cut.config(E4B | changes)


def test_the_smallest_slice_has_the_shapes_of_the_official_e2b() -> None:
    cut, official = official_model("e4b", PUBLISHED["e1.91"]), official_model("e2b")
    assert {n: s.shape for n, s in cut.tensors.items()} == {n: s.shape for n, s in official.tensors.items()}
    plans = [published_plan(Target.parse(name)) for name in ("e1.91-int4", "e2b-int4")]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0].footprint.total_bytes == plans[1].footprint.total_bytes


def test_the_frontier_falls_in_size_and_score() -> None:
    scores = [cut.mmlu or 0 for cut in frontier()]
    assert scores == sorted(scores, reverse=True)
    assert [cut.name for cut in frontier()][:3] == ["e3.59", "e3.39", "e3.18"]


def plan(*options: str) -> Any:
    """What `gemma-edge plan --json` prints."""
    found = CliRunner().invoke(main, ["plan", "--json", *options])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_fit_takes_a_slice_before_a_smaller_model() -> None:
    asked = ("--target", "e4b-int4", "--profile", "phone-2gb", "--fit")
    chosen = plan(*asked)
    assert chosen["target"].startswith("e2.")
    assert chosen["fit"].startswith(f"--target {chosen['target']} ")
    again = plan("--profile", "phone-2gb", *chosen["fit"].split())
    assert again["footprint"] == chosen["footprint"]
    assert again["fit"] is None


def test_what_would_fit_names_the_score_of_a_slice() -> None:
    found = CliRunner().invoke(main, ["plan", "--target", "e4b-int4", "--profile", "phone-2gb"], terminal_width=200)
    assert found.exit_code == 1
    assert "(MMLU 57.7, the whole 62.3)" in found.stderr
    smaller = CliRunner().invoke(main, ["plan", "--target", "e1.91-int8", "--profile", "phone-2gb"])
    assert "--target e1.91-int4" in smaller.stderr
    assert "MMLU" not in smaller.stderr


def test_every_slice_is_shown_with_its_size_and_score() -> None:
    rows = plan("--target", "e4b-int4", "--slices", "--profile", "phone-2gb")
    assert [row["slice"] for row in rows] == ["e4b", *reversed([*PUBLISHED])]
    sizes = [row["weight_bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert {row["slice"] for row in rows if row["fits"]} == {"e1.91", "e1.96"}
    assert {row["slice"] for row in rows if row["best"]} == {cut.name for cut in frontier()}
    e339 = next(row for row in rows if row["slice"] == "e3.39")
    alone = plan("--target", "e3.39-int4")
    assert (e339["anon_bytes"], e339["file_bytes"]) == (
        alone["footprint"]["anon_bytes"],
        alone["footprint"]["file_bytes"],
    )
    table = CliRunner().invoke(main, ["plan", "--target", "e4b-int4", "--slices"]).stdout
    assert "e3.39-int4" in table
    assert "63.0 ███████████████" in table
    assert "fits" not in table


def test_slices_of_another_model() -> None:
    found = CliRunner().invoke(main, ["plan", "--target", "1b-int4", "--slices"])
    assert found.exit_code == 1
    assert found.stderr == "error: target 1b-int4: slices are cut from Gemma 3n E4B; use --target e4b-int4\n"
