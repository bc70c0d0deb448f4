from pathlib import Path

import litert_lm
import pytest

from gemma_edge.converter.convert import make_target, plan_for
from gemma_edge.converter.litert.task_bundle import TaskBundle, llm_parameters
from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.formats.task import Task

# Window 64 and prefill 16 make 80 slots: at this context the sliding layers keep all of it, as a .task needs.
CONTEXT_TOKENS = 80


def write_task(checkpoint: Path, out: Path) -> TaskBundle:
    source, plan = plan_for(make_target("custom-fp32", context=CONTEXT_TOKENS, prefill=(16,)), checkpoint)
    bundle = TaskBundle.lay_out(plan, checkpoint)
    with atomic_file(out) as file:
        bundle.write(file, source, str, lambda _: None)
    assert out.stat().st_size == bundle.nbytes
    return bundle


def test_the_entries_are_mediapipes(tiny_gemma3n: Path, tmp_path: Path) -> None:
    write_task(tiny_gemma3n, tmp_path / "model.task")
    task = Task.open(tmp_path / "model.task")
    assert {entry.name for entry in task.entries} == {
        "TF_LITE_PREFILL_DECODE",
        "TF_LITE_EMBEDDER",
        "TF_LITE_PER_LAYER_EMBEDDER",
        "TOKENIZER_MODEL",
        "METADATA",
    }
    assert task.read("TF_LITE_EMBEDDER")[4:8] == b"TFL3"


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_litert_lm_runs_it(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """LiteRT-LM reads MediaPipe's container and metadata with code of its own."""
    write_task(request.getfixturevalue(f"tiny_{family}"), tmp_path / "model.task")
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    with litert_lm.Engine(str(tmp_path / "model.task"), litert_lm.Backend.CPU()) as engine:
        assert engine.bos_token_id == 2
        assert engine.eos_token_ids == [[1], [11]]
        with engine.create_conversation() as conversation:
            assert conversation.render_message_to_string("Hello") == (
                "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n"
            )
            conversation.send_message("And God said", max_output_tokens=8)
            assert conversation.token_count > 10


def test_the_metadata_is_an_llm_parameters_message(tiny_gemma3: Path) -> None:
    """Byte for byte what mediapipe 0.10.21's bundler writes for the same values."""
    data = llm_parameters(tiny_gemma3, (tiny_gemma3 / "tokenizer.model").read_bytes())
    assert data == (
        b"\x2a\x05<eos>\x2a\x0d<end_of_turn>\x32\x05<bos>"
        b"\x42\x3b\x12\x14<start_of_turn>user\n\x1a\x23<end_of_turn>\n<start_of_turn>model\n"
    )


def test_rings_are_refused(tiny_gemma3: Path) -> None:
    plan = plan_for(make_target("custom-fp32", context=256, prefill=(16,)), tiny_gemma3)[1]
    with pytest.raises(ValueError, match=r"a \.task bundle cannot describe ring caches; plan with full ones"):
        TaskBundle.lay_out(plan, tiny_gemma3)
