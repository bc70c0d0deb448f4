"""The page of a report: pictures or a word about them, markup, and what only some reports have."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.verify.cli import verify_main
from gemma_edge.converter.verify.find.encoders import EncoderScore
from gemma_edge.converter.verify.measure.tasks import TaskResult
from gemma_edge.converter.verify.show.html import html_report
from tests.converter.verify.show.pages import Page, report


def test_a_page_has_its_pictures() -> None:
    page = Page(html_report(report()))
    assert page.pictures == 3
    assert "Signal to noise by layer" in page.text
    assert "' end' 75%" in page.text


def test_without_matplotlib_the_page_and_the_command_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("gemma_edge.converter.verify.verify.verify", lambda **_request: report())
    path = tmp_path / "report.html"
    ran = CliRunner().invoke(verify_main, ["model", "--checkpoint", "tiny", "--html", str(path)])
    missing = "without pictures, matplotlib is not installed; pip install 'gemma-edge[plot]'"
    assert ran.stderr == f"{path}: {missing}\n"
    page = Page(path.read_text("utf-8"))
    assert page.pictures == 0
    assert f"The report is {missing}." in page.text
    assert "nothing to draw" not in page.text


def test_exact_weights_leave_nothing_to_draw() -> None:
    exact = tuple(replace(tensor, snr_db=float("inf")) for tensor in report().tensors)
    page = Page(html_report(replace(report(), tensors=exact)))
    assert page.pictures == 2
    assert "weights by layer and encoding: nothing to draw, every value is exact." in page.text


def test_the_page_tells_of_encoders_and_prompts() -> None:
    encoder = EncoderScore(Modality.VISION, 256, 0.0123, 0.98765)
    task = TaskResult("Give me JSON.", "no", "expected JSON")
    text = Page(html_report(replace(report(), encoders=(encoder,), tasks=(task,)))).text
    assert "Encoders encoderembeddingsrelative errorworst cosine vision2561.23e-020.98765" in text
    assert "Prompts promptanswer Give me JSON.noexpected JSON" in text
    assert "Encoders" not in Page(html_report(report())).text


def test_names_of_their_own_cannot_be_compared() -> None:
    text = Page(html_report(replace(report(), tensors=(), layers=()))).text
    assert "The bundle's weights have names of their own and could not be compared." in text
    assert "Every layer" not in text


def test_markup_in_a_text_stays_text() -> None:
    [worst] = report().worst
    shown = html_report(replace(report(), worst=(replace(worst, context="<script>alert(1)</script>"),)))
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
