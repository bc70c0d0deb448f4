"""`gemma-edge verify` as its user meets it: the figures, the report in three forms, the exit status."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from gemma_edge.converter.checkpoint import hub
from gemma_edge.converter.checkpoint.hub import HubError
from gemma_edge.converter.cli import main
from gemma_edge.converter.quality.gates import judge, parse_gates
from gemma_edge.converter.quality.verdict import Verdict
from gemma_edge.converter.verify.cli import verify_main
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.find.faults import Finding
from gemma_edge.converter.verify.measure.scores import Metric
from gemma_edge.converter.verify.show.html import html_report
from gemma_edge.converter.verify.show.report import VerifyReport
from gemma_edge.converter.verify.verify import verify
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.measure.compare import Cost, compare
from tests.converter.checkpoint.adapters import edit, pair, write_adapter
from tests.converter.verify.show.pages import Page
from tests.converter.verify.wrong import bundle_of, copied, verified
from tests.slots import litert_slot


@pytest.fixture(scope="module")
def checkpoint(tiny_gemma3n: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tiny_gemma3n, tmp_path_factory.mktemp("verify") / "tiny")


@pytest.fixture(scope="module")
def int4(checkpoint: Path) -> Path:
    return bundle_of(checkpoint, "int4")


@pytest.fixture(scope="module")
def fp32(checkpoint: Path) -> Path:
    return bundle_of(checkpoint, "fp32")


@pytest.fixture(scope="module")
def report(int4: Path, fp32: Path, checkpoint: Path, val_bin: Path) -> VerifyReport:
    """With everything in it."""
    return verified(int4, checkpoint, val_bin, limit=256, against=fp32, gate="kl<=0.02,top1>=0.999")


class _Runtime:
    """A bundle behind runtime.measure.compare's Comparable."""

    def __init__(self, path: Path) -> None:
        self._executor = litert_slot(DecoderSections.of(Bundle.open(path)), 1, None)

    def score(self, token_ids: Any) -> Any:
        self._executor.reset()
        return (self._executor.decode(token) for token in token_ids)

    def greedy(self, _token_ids: Any, count: int) -> list[int]:
        return [0] * count

    def cost(self) -> Cost:
        return Cost(0, 0, 0, 0.0)


def test_the_figures_are_those_of_an_independent_comparison(
    report: VerifyReport, int4: Path, fp32: Path, val_bin: Path
) -> None:
    """An fp32 bundle stands for the checkpoint; runtime.measure.compare shares no code with verify."""
    ids = np.fromfile(val_bin, "<u2")[:256].tolist()
    distance = compare(_Runtime(fp32), _Runtime(int4), ids, window=128, greedy_tokens=0).distance
    metrics = report.bundle.metrics
    assert metrics["kl"].value == pytest.approx(distance.kl_ab, rel=1e-3)
    assert metrics["top1"].value == pytest.approx(distance.top1)
    assert metrics["perplexity"].value == pytest.approx(distance.perplexity_b, rel=1e-5)
    assert metrics["reference_perplexity"].value == pytest.approx(distance.perplexity_a, rel=1e-4)
    assert report.against is not None
    assert report.against.metrics["kl"].value < 1e-8
    assert report.differences is not None
    assert report.differences["kl"].value == pytest.approx(-distance.kl_ab, rel=1e-3)


def test_weights_cost_most_of_it_and_the_runtime_little(report: VerifyReport) -> None:
    assert report.weights_kl is not None
    assert 0.5 < report.weights_kl / report.bundle.metrics["kl"].value < 1.5
    assert report.sample_tokens == 128
    assert [layer.layer for layer in report.layers] == list(range(8))
    assert [layer.layer for layer in report.layers if layer.keys is not None] == [0, 1, 2, 3, 4]
    assert all(layer.output is not None and layer.output.cosine > 0.99 for layer in report.layers)


def test_the_worst_tokens_are_told_with_their_context(report: VerifyReport) -> None:
    assert len(report.worst) == 20
    kl = [token.kl for token in report.worst]
    assert kl == sorted(kl, reverse=True)
    assert kl[0] == report.bundle.metrics["kl_max"].value == max(report.bundle.kl)
    worst = report.worst[0]
    assert report.bundle.kl[worst.window * 128 + worst.position] == kl[0]
    assert worst.context
    assert 0 < worst.reference[0].probability <= 1


def test_json_holds_everything(report: VerifyReport) -> None:
    values = json.loads(report.json())
    assert values["passed"] is False
    [kl, top1] = values["gates"]
    assert (kl["metric"], kl["relation"], kl["bound"], kl["holds"]) == ("kl", "<=", 0.02, True)
    assert (top1["gate"], top1["holds"]) == ("top1 >= 0.999", False)
    assert values["layers"][0]["output"]["snr_db"] > 20
    norms = [tensor for tensor in values["tensors"] if tensor["encoding"] == "fp32"]
    assert {tensor["snr_db"] for tensor in norms} == {None}  # exact
    assert values["bundle"]["metrics"]["kl"]["low"] < values["bundle"]["metrics"]["kl"]["value"]


def test_the_page_stands_alone(report: VerifyReport) -> None:
    page = Page(html_report(report))
    assert page.pictures == 3
    assert "Encoders" not in page.text
    for text in (
        "failed",
        "gate top1 >= 0.999: FAILED",
        "KL, mean, nats",
        "layers.1.mlp.up_proj.weight",
        "Every layer",
    ):
        assert text in page.text, text


def test_brackets_in_a_text_are_no_markup(report: VerifyReport) -> None:
    [worst, *_] = report.worst
    console = Console(file=io.StringIO(), width=200)
    finding = Finding("wrong chat template", "as trained", "after '[/b]' the bundle writes '[red]'")
    shown = replace(
        report,
        checkpoint="tiny[/]",
        bundle=replace(report.bundle, name="a[red].litertlm"),
        worst=(replace(worst, context="[/b] [1]"),),
        findings=(finding,),
    )
    shown.print(console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "'[/b] [1]'" in printed
    assert "a[red].litertlm against tiny[/]: 256 tokens" in printed
    assert "after '[/b]' the bundle writes '[red]'. as trained" in printed
    assert "1 fault found" in printed


def _run(*arguments: object) -> Result:
    """The command alone, narrow enough for no table to break."""
    fixed = ("--threads", "1", "--cache-dir", ":nocache", "--window", "64")
    return CliRunner().invoke(
        verify_main, [*map(str, arguments), *fixed], env={"COLUMNS": "250"}, catch_exceptions=False
    )


def test_the_command_passes_and_fails_by_its_gates(int4: Path, checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    kept = _run(int4, "--checkpoint", checkpoint, "--limit", 128, "--gate", "kl<=1", "--html", page)
    assert kept.exit_code == 0, kept.output
    assert "gate kl <= 1: passed (0.00" in kept.stdout
    assert "no known fault found" in kept.stdout
    assert kept.stderr == ""
    assert "passed" in page.read_text()
    broken = _run(int4, "--checkpoint", checkpoint, "--limit", 128, "--gate", "kl<=1e-9,ppl<=9", "--json")
    assert broken.exit_code == 1
    assert broken.stderr.startswith("gate kl <= 1e-09: FAILED (0.00")
    assert json.loads(broken.stdout)["gates"][1]["holds"] is True


def test_a_fault_fails_without_any_gate(checkpoint: Path, tmp_path: Path) -> None:
    wrong = bundle_of(copied(checkpoint, tmp_path / "wrong", final_logit_softcapping=None))
    ran = _run(wrong, "--checkpoint", checkpoint, "--limit", 64)
    assert ran.exit_code == 1
    assert ran.stderr.startswith("fault: missing soft-cap: over 64 tokens the bundle's logits are -")


def test_prompts_are_asked_and_count_for_a_gate(int4: Path, checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Give me JSON.", "json": true}\n')
    ran = _run(int4, "--checkpoint", checkpoint, "--limit", 64, "--prompts", prompts, "--gate", "tasks>=1")
    assert ran.exit_code == 1
    assert "expected JSON: " in ran.stdout  # it learned the Bible
    assert ran.stderr == "gate tasks >= 1: FAILED (0)\n"


def test_the_command_is_listed() -> None:
    assert "verify" in CliRunner().invoke(main, ["--help"]).output


def test_what_cannot_be_verified_is_refused(int4: Path, checkpoint: Path, tiny_gemma3: Path, val_bin: Path) -> None:
    def message(kind: type[GemmaEdgeError], **changes: Any) -> str:
        options: dict[str, Any] = {"bundle": int4, "checkpoint": checkpoint, "tokens": val_bin, "threads": 1}
        with pytest.raises(kind) as caught:
            verify(**(options | changes), cache_dir=":nocache")
        return str(caught.value)

    assert message(VerifyError, text=val_bin) == (
        "found both a text and a file of tokens, expected one of them; leave one out"
    )
    for option, value, least in (("limit", -5, 2), ("window", 1, 2), ("seed", -1, 0), ("threads", 0, 1)):
        assert message(VerifyError, **{option: value}) == (
            f"--{option} {value}: expected at least {least}; give a larger number"
        )
    assert message(VerifyError, window=300) == (
        "tiny-int4.litertlm: its context holds 256 tokens, a window has 300; give a smaller --window"
    )
    assert message(VerifyError, checkpoint=tiny_gemma3).startswith(
        "tiny-int4.litertlm: a vocabulary of 2080 tokens, the checkpoint has 2048; give the checkpoint that"
    )
    assert message(HubError, checkpoint="no/such/directory").startswith(
        "no/such/directory: no such directory or file: the current directory has no no, "
    )


def test_a_checkpoint_or_an_adapter_of_another_model_is_refused(
    tiny_gemma3: Path, val_bin: Path, tmp_path: Path
) -> None:
    """What is not read would not be missed: the bundle is compared with the model without it."""

    def message(checkpoint: Path, lora: Path | None = None) -> str:
        with pytest.raises(GemmaEdgeError) as caught:
            verified(bundle, checkpoint, val_bin, lora=lora)
        return str(caught.value)

    bundle = bundle_of(copied(tiny_gemma3, tmp_path / "right"))
    deeper = write_adapter(tmp_path / "deeper", tiny_gemma3)
    edit(deeper, **pair("model.layers.9.mlp.up_proj", 512, 128))
    assert message(tiny_gemma3, deeper).startswith(f"{deeper}: model.layers.9.mlp.up_proj not in {tiny_gemma3}; the")
    shallower = write_adapter(tmp_path / "shallower", tiny_gemma3)
    layer = "layers.5.mlp.up_proj"
    edit(shallower, remove=(f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"))
    assert message(tiny_gemma3, shallower).startswith(f"{shallower}: no weights for model.{layer}, which target_modul")
    wide = copied(tiny_gemma3, tmp_path / "wide", intermediate_size=256)
    assert message(wide).startswith("model.layers.0.mlp.gate_proj.weight: shape [512, 128], expected [256, 128]")


def test_a_page_without_a_folder_is_refused_at_once(int4: Path, checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "absent" / "report.html"
    arguments = ("--checkpoint", checkpoint, "--limit", 64, "--html", page)
    with pytest.raises(GemmaEdgeError, match=r"report\.html: cannot be written, its folder does not exist; choose"):
        _run(int4, *arguments)
    with pytest.raises(GemmaEdgeError, match=r": cannot be written, it is a folder; name a file$"):
        _run(int4, *arguments[:-1], tmp_path)


def test_a_page_that_cannot_be_written_does_not_take_the_figures_with_it(
    int4: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"checkpoint": str(checkpoint), "limit": 64, "window": 64, "html": "/dev/full"}
    with pytest.raises(GemmaEdgeError, match=r"^/dev/full: cannot be written \(No space left on device\); choose"):
        verify_main.main(
            [str(int4), *(word for key, value in options.items() for word in (f"--{key}", str(value)))],
            standalone_mode=False,
        )
    assert "no known fault found" in capsys.readouterr().out


def test_two_bundles_of_one_name_are_told_apart(int4: Path, fp32: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / int4.name
    other.symlink_to(fp32)
    report = verify(int4, checkpoint, against=other, limit=64, window=64, threads=1, cache_dir=":nocache")
    assert report.against is not None
    assert (report.bundle.name, report.against.name) == (str(int4), str(other))


@pytest.fixture
def broken(report: VerifyReport) -> VerifyReport:
    """A bundle whose replies are broken, as int4 with a scale per row breaks Gemma 3 270M."""
    figures = {"kl": Metric(3.19), "top1": Metric(0.27), "ppl": Metric(27.1)}
    bundle = replace(report.bundle, metrics={**report.bundle.metrics, **figures})
    return replace(report, bundle=bundle, gates=(), findings=())


def test_the_verdict_is_the_last_word(report: VerifyReport, broken: VerifyReport) -> None:
    assert report.verdict is Verdict.GOOD
    assert _printed(report).startswith("good: replies are as good as the checkpoint's (KL 0.00")
    assert _printed(report).endswith("; no known fault found")
    assert _printed(broken) == (
        "not usable: replies are broken (KL 3.2 nats, the checkpoint's most likely token in 27% of positions, "
        "perplexity x 27.1); no known fault explains it, so it is what storing the weights in so few bits costs: "
        "convert to a higher precision, or with --calibrate"
    )
    fault = Finding("wrong chat template", "as trained", "other")
    assert _printed(replace(broken, findings=(fault,))).startswith("1 fault found; not usable by its figures alone: KL")
    assert _printed(replace(report, findings=(fault, fault))).startswith(
        "2 faults found; good by its figures alone: KL"
    )


def _printed(report: VerifyReport) -> str:
    """The last line."""
    console = Console(file=io.StringIO(), width=400)
    report.print(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()[-1]


def test_the_verdict_is_in_json_and_on_the_page(report: VerifyReport, broken: VerifyReport) -> None:
    values = json.loads(broken.json())
    assert (values["verdict"], values["verdict_means"]) == ("not usable", "replies are broken")
    assert json.loads(report.json())["verdict"] == "good"
    page = Page(html_report(broken))
    assert "failed not usable: replies are broken (KL 3.2 nats" in page.text


def test_a_bundle_that_is_not_usable_fails_unless_gates_decide(report: VerifyReport, broken: VerifyReport) -> None:
    [gate] = parse_gates("kl<=5", with_tasks=False)
    assert not broken.passed
    assert replace(broken, gates=judge((gate,), {"kl": 3.19})).passed
    assert not replace(broken, gates=judge((gate,), {"kl": 5.1})).passed
    assert replace(report, gates=()).passed


def test_the_command_says_that_a_bundle_is_not_usable(
    int4: Path, checkpoint: Path, broken: VerifyReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma_edge.converter.verify.verify.verify", lambda **_request: broken)
    ran = _run(int4, "--checkpoint", checkpoint)
    assert ran.exit_code == 1
    assert ran.stderr.startswith("not usable: replies are broken (KL 3.2 nats, ")


def test_a_checkpoint_may_be_a_hub_id(int4: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_download", lambda *_wanted: checkpoint)
    report = verify(int4, "org/tiny", limit=64, window=64, threads=1, cache_dir=":nocache")
    assert report.checkpoint == checkpoint.name


def test_time_and_memory_are_told(report: VerifyReport) -> None:
    assert report.peak_anon_bytes > 0
    assert report.seconds > 0
