"""The command line: `gemma-edge` and its shorthand `convert`."""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gemma_edge.converter.printing import printable
from gemma_edge.profiles.budget import OverBudget, refusal_tables
from gemma_edge.profiles.errors import GemmaEdgeError

COMMANDS = "gemma_edge.commands"
KV_TYPES = ("fp32", "fp16")
FORMATS = ("litertlm", "task", "onnx")
MODALITIES = ("text", "vision", "audio")


class Lengths(click.ParamType[tuple[int, ...]]):
    """A comma-separated list of token counts."""

    name = "N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """("16,128") -> (16, 128)."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected numbers with commas between them, such as 16,128", param, ctx)


class Names(click.ParamType[tuple[str, ...]]):
    """A comma-separated list of some of the given names."""

    name = "NAME,NAME"

    def __init__(self, *choices: str) -> None:
        self._choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """("text,vision") -> ("text", "vision")."""
        names = value if isinstance(value, tuple) else tuple(str(value).split(","))
        for name in names:
            if name not in self._choices:
                self.fail(f"{name!r}: expected names out of {', '.join(self._choices)} with commas between", param, ctx)
        return names


class Commands(click.Group):
    """Its own commands and those registered under the entry point group `gemma_edge.commands`.

    The other layers' commands come that way: the converter does not import the runtime. A GemmaEdgeError of any command
    is printed as its one line, without a traceback, and the exit status is the error's own, mostly 1.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in alphabetical order."""
        return sorted({*super().list_commands(ctx), *entry_points(group=COMMANDS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A registered command is imported when it is asked for."""
        for entry in entry_points(group=COMMANDS, name=cmd_name):
            command: click.Command = entry.load()
            return command
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the class."""
        status = 1
        try:
            return super().invoke(ctx)
        except GemmaEdgeError as error:
            if isinstance(error, OverBudget):
                Console(stderr=True).print(*refusal_tables(error))
            click.echo(f"error: {printable(str(error))}", err=True)
            status = error.exit_status
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("gemma_edge"):
                raise
            click.echo(f"error: this needs the package {error.name}; pip install 'gemma-edge[litert]'", err=True)
        raise click.exceptions.Exit(status)


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `convert` and `plan` share."""
    options = (
        click.option("--target", required=True, help="{e2b,e4b,1b,custom}-{int4,int8,fp16,fp32}."),
        click.option(
            "--checkpoint",
            help="Directory, GGUF file or hub id (REPO:FILE.gguf: one of several); default: the official repository.",
        ),
        click.option("--profile", help="Device profile, by name or file; refuse what does not fit it."),
        click.option("--context", type=int, help="Context in tokens.  [default: 4096, or the model's maximum]"),
        click.option(
            "--prefill",
            type=Lengths(),
            default="16,128",
            show_default=True,
            help="Prefill chunk lengths; an ONNX graph takes any.",
        ),
        click.option(
            "--format", type=click.Choice(FORMATS), default="litertlm", show_default=True, help="Bundle kind."
        ),
        click.option(
            "--modalities",
            type=Names(*MODALITIES),
            help="What the model is to take, such as text,vision.  [default: all that the checkpoint has and fits]",
        ),
        click.option("--kv", type=click.Choice(KV_TYPES), default="fp32", show_default=True, help="KV cache type."),
        click.option(
            "--recipe", type=click.Path(), help="A TOML file, role -> encoding; int4-fast; or auto (./auto is a file)."
        ),
        click.option(
            "--max-bytes", metavar="SIZE", help="For --recipe auto: the bundle's largest size, such as 2.6GB."
        ),
        click.option("--encoding", multiple=True, metavar="ROLE=ENCODING", help="Override the recipe; repeatable."),
        click.option("--lora", type=click.Path(path_type=Path), help="PEFT adapter to merge, a directory."),
        click.option("--fit", is_flag=True, help="If it does not fit the profile, take the nearest that does."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=Commands)
@click.version_option(package_name="gemma-edge")
def main() -> None:
    """Take a Gemma checkpoint to a phone or an edge box, inside a memory budget."""


@main.command("convert")
@request_options
@click.option(
    "--calibrate",
    is_flag=False,
    flag_value="built-in",
    metavar="[FILE]",
    help="Round layers for what they are given on a text: a file, or without one a built-in text.",
)
@click.option("--gate", default="", metavar="GATES", help="Bounds to keep, such as kl<=0.05,ppl<=1.1.")
@click.option("--accept-loss", is_flag=True, help="Write a bundle that is measured to be not usable, too.")
@click.option("--no-measure", "measure", flag_value=False, default=True, help="Do not measure what is lost.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
def convert_main(as_json: bool, **request: Any) -> None:
    """Convert a checkpoint into one bundle, streaming: memory stays flat however large the model.

    What is lost is measured on the way. Exit status 3, and no bundle: it is not usable, or a gate is not kept.
    """
    from gemma_edge.converter.convert import convert
    from gemma_edge.converter.progress import bars

    with bars(Console(stderr=True)) as stage:
        report = convert(stage=stage, **request)
    if as_json:
        click.echo(json.dumps(report.values, indent=2))
    else:
        report.print(Console())


@main.command("plan")
@request_options
def plan_main(as_json: bool, checkpoint: str | None, **request: Any) -> None:
    """Show every size and the memory a run will need, to the byte, before a weight is converted."""
    from gemma_edge.converter.convert import lay_out, make_target, plan_for
    from gemma_edge.converter.progress import bars
    from gemma_edge.converter.report import plan_values, print_plan, print_sections, section_values

    with bars(Console(stderr=True)) as stage:
        source, plan = plan_for(make_target(**request), checkpoint, stage)
    bundle = lay_out(plan, source)
    if as_json:
        values = plan_values(plan) | {"sections": section_values(bundle), "bundle_bytes": bundle.nbytes}
        click.echo(json.dumps(values, indent=2))
    else:
        print_plan(plan, Console())
        print_sections(bundle, Console())


@main.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect_main(bundle: Path, as_json: bool) -> None:
    """Show what a bundle or an ONNX directory holds: graphs, tensors with encodings, metadata and hashes."""
    inspect, print_values = _inspectors(bundle)
    values = inspect(bundle)
    if as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        print_values(values, Console())


def _inspectors(path: Path) -> tuple[Callable[[Path], dict[str, Any]], Callable[[dict[str, Any], Console], None]]:
    """How to look at what lies at `path`, and how to print it. Each format needs libraries of its own."""
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises where the name is too long, or may not be looked up
        from gemma_edge.converter.onnx.inspect import inspect_directory, print_directory

        return inspect_directory, print_directory
    from gemma_edge.converter.litert.inspect import inspect_bundle, print_inspection

    return inspect_bundle, print_inspection


@main.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def targets_main(as_json: bool) -> None:
    """List what `--target` takes."""
    from gemma_edge.converter.plan.targets import print_targets, target_values

    if as_json:
        click.echo(json.dumps(target_values(), indent=2))
    else:
        print_targets(Console())


def convert_script() -> None:
    """The console script `convert`: `gemma-edge convert`."""
    main(["convert", *sys.argv[1:]], prog_name="gemma-edge")
