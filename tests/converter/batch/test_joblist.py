"""A list of conversions: what its keys mean, and what is refused before anything runs."""

from pathlib import Path

import pytest

from gemma_edge.converter.batch.joblist import BatchError, Job, read_list
from gemma_edge.converter.plan.target import Target

JOB = '[[job]]\ntarget = "custom-int4"\ncheckpoint = "a"\nout = "a.litertlm"\n'


def jobs_of(folder: Path, text: str) -> tuple[Job, ...]:
    (folder / "list.toml").write_text(text)
    return read_list(folder / "list.toml")


def test_a_job_is_the_command_that_its_keys_spell(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("")
    (tmp_path / "a").mkdir()
    defaults = '[defaults]\ncontext = 256\nprefill = [8, 32]\nmeasure = false\nrecipe = "own.toml"\n'
    extra = 'accept-loss = true\nencoding = ["ffn=int8", "head=int8"]\ncalibrate = true\nmemory = "2GiB"\nname = "A"\n'
    [job] = jobs_of(tmp_path, f"{defaults}{JOB}{extra}")
    assert set(job.arguments) == {
        "--target=custom-int4", f"--checkpoint={tmp_path}/a", f"--out={tmp_path}/a.litertlm", "--context=256",
        "--prefill=8,32", "--no-measure", f"--recipe={tmp_path}/own.toml", "--accept-loss", "--encoding=ffn=int8",
        "--encoding=head=int8", "--calibrate=built-in",
    }  # fmt: skip
    assert (job.name, job.memory_bytes) == ("A", 2 << 30)
    assert job.request["prefill"] == (8, 32)
    assert job.request["measure"] is False
    assert job.files == {"recipe": tmp_path / "own.toml", "checkpoint": tmp_path / "a"}
    assert job.spelled["recipe"] == "own.toml"  # a list that is moved as a whole says the same


def test_a_name_that_is_no_file_is_left_as_it_is(tmp_path: Path) -> None:
    [job] = jobs_of(tmp_path, JOB.replace('"a"', '"google/gemma-3-1b-it"') + 'profile = "phone-2gb"\nformat = "onnx"')
    assert "--checkpoint=google/gemma-3-1b-it" in job.arguments
    assert not job.files


def test_defaults_give_way_and_flags_may_be_taken_back(tmp_path: Path) -> None:
    text = f'[defaults]\nfit = true\nprofile = "phone-2gb"\n{JOB}fit = false\n'
    [job] = jobs_of(tmp_path, text)
    assert "--fit" not in job.arguments
    assert isinstance(job.target, Target)
    assert not job.is_directory


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job = 3", "expected one [defaults] and a [[job]] for each conversion"),
        ("", "no jobs; add a [[job]] with checkpoint and out for each conversion"),
        ("= 3", "is not TOML (Invalid statement"),
        (f"{JOB}[other]", "unknown key 'other'; expected [defaults] and [[job]]"),
        ('[[job]]\ntarget = "custom-int4"', "job 1: no out; say what to write"),
        (f"{JOB}name = 3", "job 1: name 3; expected a text"),
        (f"{JOB}contxt = 3", "job 1: unknown key 'contxt'; `gemma-edge convert --help` names what there is"),
        (f"{JOB}json = true", "job 1: unknown key 'json'"),
        (f"{JOB}fit = 1", "job 1: fit is 1; expected true or false"),
        (f"{JOB}context = true", "job 1: context is True; expected a text or a number, or a list of them"),
        (f'{JOB}context = "much"', "job 1: Invalid value for '--context': 'much' is not a valid integer; change it in"),
        (f'{JOB}memory = "2"', "job 1: memory '2'; expected a size with its unit, such as 2GiB"),
        (JOB + JOB, "two jobs are called 'a.litertlm'; give one of them another name"),
        (f'{JOB}{JOB}name = "b"', "jobs 'a.litertlm' and 'b' both write"),
    ],
)
def test_what_is_wrong_is_said_of_its_job(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BatchError) as caught:
        jobs_of(tmp_path, text)
    assert message in str(caught.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"cannot be read \(No such file or directory\); give a list of jobs in TOML"):
        read_list(tmp_path / "list.toml")
