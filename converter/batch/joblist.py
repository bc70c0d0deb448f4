"""A list of conversions in TOML, checked against the options that `gemma-edge convert` has.

    [defaults]
    target = "custom-int4"

    [[job]]
    checkpoint = "fine-tunes/anna"
    out = "bundles/anna.litertlm"

Keys are the names of those options; two more are a job's own: `name`, and `memory`, where it is known better than
planned. Relative paths begin where the list lies.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from gemma_edge.converter.cli import convert_main
from gemma_edge.converter.plan.target import BUILT_IN_TEXT, Target, format_of
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.paths import user_path
from gemma_edge.profiles.plain_file import read_plain_text
from gemma_edge.profiles.sizes import parse_size

_PATHS: Final = ("checkpoint", "profile", "recipe", "calibrate", "slice", "with_slice", "drafter", "lora", "sign")
"""Options that may name a file or a folder."""
_NOT_IN_A_LIST: Final = ("as_json", "out")
_OPTIONS: Final = {
    param.name: param
    for param in convert_main.params
    if isinstance(param, click.Option) and param.name is not None and param.name not in _NOT_IN_A_LIST
}


class BatchError(GemmaEdgeError):
    """A list that cannot be worked on, or a job of it."""


@dataclass(frozen=True)
class Job:
    """One conversion of the list.

    spelled: options as the list has them, defaults included; those that the output's bytes may follow from.
    arguments: of `gemma-edge convert`. request: the same as `convert` takes them. files: of those options that name a
    file or a folder, where it lies. memory_bytes: what the list says it needs, if it does.
    """

    name: str
    out: Path
    spelled: Mapping[str, Any]
    arguments: tuple[str, ...] = field(repr=False)
    request: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, Path] = field(repr=False)
    memory_bytes: int | None = None

    @property
    def target(self) -> Target:
        """The request as one value. Raises TargetError, RecipeError, TextError or ProfileError."""
        others = ("target", "checkpoint", "gate", "measure", "accept_loss", "out")
        options: Any = {name: value for name, value in self.request.items() if name not in others}
        options["format"] = format_of(self.out, options["format"])
        return Target.parse(self.request["target"], **options)

    @property
    def is_directory(self) -> bool:
        """Whether the output is one. Raises as `target`."""
        return not self.target.format.suffix


def read_list(path: Path) -> tuple[Job, ...]:
    """The jobs of a list, in its order.

    Raises BatchError, naming the job, where it is no such list: before anything is converted.
    """
    path = user_path(path)
    try:
        values = tomllib.loads(read_plain_text(path))
    except OSError as error:
        raise BatchError(f"{path}: cannot be read ({error.strerror}); give a list of jobs in TOML") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BatchError(f"{path}: is not TOML ({error}); mend it there") from error
    if unknown := sorted(values.keys() - {"defaults", "job"}):
        raise BatchError(f"{path}: unknown key {unknown[0]!r}; expected [defaults] and [[job]]")
    defaults, rows = values.get("defaults", {}), values.get("job", [])
    if not isinstance(defaults, dict) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BatchError(f"{path}: expected one [defaults] and a [[job]] for each conversion")
    if not rows:
        raise BatchError(f"{path}: no jobs; add a [[job]] with checkpoint and out for each conversion")
    folder = path.resolve().parent
    jobs = tuple(_job(f"{path}: job {i}", folder, defaults | row) for i, row in enumerate(rows, start=1))
    for i, job in enumerate(jobs):
        for other in jobs[:i]:
            if other.name == job.name:
                raise BatchError(f"{path}: two jobs are called {job.name!r}; give one of them another name")
            if other.out == job.out:
                raise BatchError(f"{path}: jobs {other.name!r} and {job.name!r} both write {job.out}; change one")
    return jobs


def _job(where: str, folder: Path, row: Mapping[str, Any]) -> Job:
    values = {key.replace("-", "_"): value for key, value in row.items()}
    out, memory = values.pop("out", None), values.pop("memory", None)
    name = values.pop("name", out)
    if not isinstance(out, str) or not out:
        raise BatchError(f"{where}: no out; say what to write")
    if not isinstance(name, str) or not name:
        raise BatchError(f"{where}: name {name!r}; expected a text")
    if unknown := sorted(values.keys() - _OPTIONS.keys()):
        raise BatchError(f"{where}: unknown key {unknown[0]!r}; `gemma-edge convert --help` names what there is")
    place = folder / user_path(out)
    files = {key: found for key in _PATHS if (found := _file(folder, values.get(key))) is not None}
    given = values | {key: str(file) for key, file in files.items()}
    arguments = [word for key, value in given.items() for word in _words(where, key, value)]
    arguments.append(f"--out={place}")
    try:
        context = convert_main.make_context("convert", list(arguments))
    except click.UsageError as error:
        raise BatchError(f"{where}: {error.format_message().rstrip('.')}; change it in the list") from error
    request = {key: value for key, value in context.params.items() if key not in (*_NOT_IN_A_LIST, "sign")}
    spelled = {key: value for key, value in values.items() if key != "checkpoint"}
    return Job(name, place, spelled, tuple(arguments), request, files, _memory(where, memory))


def _file(folder: Path, value: Any) -> Path | None:
    """What lies under that name, seen from the list; None where an option names something else."""
    if not isinstance(value, str) or not value:
        return None
    path = folder / user_path(value)
    try:
        return path if path.exists() else None
    except OSError:  # a name that is too long
        return None


def _words(where: str, key: str, value: Any) -> list[str]:
    """What stands for it on a command line."""
    option = _OPTIONS[key]
    spelling = option.opts[0]
    if option.is_flag:
        if not isinstance(value, bool):
            raise BatchError(f"{where}: {key} is {value!r}; expected true or false")
        turns_off = option.flag_value is False  # --no-measure
        return [spelling] if value != turns_off else []
    if key == "calibrate" and isinstance(value, bool):
        return [f"{spelling}={BUILT_IN_TEXT}"] if value else []
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
        raise BatchError(f"{where}: {key} is {value!r}; expected a text or a number, or a list of them")
    texts = [str(part) for part in parts]
    return [f"{spelling}={text}" for text in (texts if option.multiple else [",".join(texts)])]


def _memory(where: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        return parse_size(value)
    except (ValueError, TypeError):
        raise BatchError(f"{where}: memory {value!r}; expected a size with its unit, such as 2GiB") from None
