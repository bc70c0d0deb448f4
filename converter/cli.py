"""The command line: `gemma-edge` and its shorthand `convert`."""

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, requires
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from rich.console import Console

from gemma_edge.converter.plan import completions
from gemma_edge.converter.printing import printable
from gemma_edge.profiles.budget import OverBudget, refusal_tables
from gemma_edge.profiles.completion import completion_main, offer, offer_profiles, variable
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.paths import user_path
from gemma_edge.profiles.terminal import make_printable

COMMANDS = "gemma_edge.commands"
KV_TYPES = ("fp32", "fp16")
MODALITIES = ("text", "vision", "audio")


class Lengths(click.ParamType[tuple[int, ...]]):
    """A comma-separated list of token counts."""

    name = "N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """("16,128") -> (16, 128), ("none") -> ()."""
        if isinstance(value, tuple):
            return value
        if value == "none":
            return ()
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected a comma-separated list of numbers, such as 16,128", param, ctx)


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
                self.fail(f"{name!r}: expected a comma-separated list of {', '.join(self._choices)}", param, ctx)
        return names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
        """After the last comma, the names that begin so."""
        del ctx, param
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + name) for name in self._choices if name.startswith(last)]


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

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click's, on outputs that take any text."""
        make_printable()
        return super().main(*args, **kwargs)

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
        except OSError as error:
            if error.filename is not None or error.errno not in _FULL:  # of a pipe that is closed click knows
                raise
            _give_up_output()
            click.echo(f"error: standard output cannot be written ({error.strerror}); free some space", err=True)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("gemma_edge"):
                raise
            extra = extra_with(error.name or "")
            click.echo(f"error: this needs the package {error.name}; pip install 'gemma-edge[{extra}]'", err=True)
        raise click.exceptions.Exit(status)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a file of ours that says so is an OutputError


def _give_up_output() -> None:
    """What is still to be written would fail once more at the end, with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_OTHER_NAMES = {"OpenSSL": "pyopenssl", "PIL": "pillow"}  # imported under another name than installed


def extra_with(module: str) -> str:
    """The extra of gemma-edge that installs what is imported under that name."""
    name = _OTHER_NAMES.get(module, module).partition(".")[0].replace("_", "-").lower()
    for requirement in requires("gemma-edge") or ():
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if package and extra and package[0].replace("_", "-").lower() == name and extra[1] not in ("dev", "real"):
            return extra[1]
    return "litert"  # what the packages of an extra need in turn: protobuf, flatbuffers


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `convert` and `plan` share."""
    options = (
        click.option(
            "--target",
            required=True,
            shell_complete=offer(completions.targets, completions.sliced_targets),
            help="{e4b,e2b,1b,custom}-{int4,int8,fp16,fp32}, a slice of E4B: e3.39-int4, or two: e4b+e2b-int4.",
        ),
        click.option(
            "--checkpoint",
            shell_complete=offer(files=True),
            help="Directory, GGUF file or hub id (REPO:FILE.gguf: one of several); default: the official repository.",
        ),
        click.option(
            "--profile",
            shell_complete=offer_profiles,
            help="Device profile, by name or file; refuse what does not fit it.",
        ),
        click.option("--context", type=int, help="Context in tokens.  [default: 4096, or the model's maximum]"),
        click.option(
            "--prefill",
            type=Lengths(),
            help="Prefill chunk lengths; an ONNX graph takes any.  [default: 16,128, as far as the context allows]",
        ),
        click.option(
            "--spans",
            type=Lengths(),
            help="Where a conversation is no longer than this, a step is faster; each takes memory.  [default: "
            "1024,8192, as far as the context is longer; or none]",
        ),
        click.option(
            "--draft",
            type=Lengths(),
            help="Run this many tokens at once where a reply can be guessed, such as 4 or 4,8: text that repeats its "
            "prompt comes faster; each takes memory.  [default: none]",
        ),
        click.option(
            "--batch",
            type=Lengths(),
            help="Take a step of this many conversations at once, such as 4 or 2,4,8: together they come faster; each "
            "takes memory.  [default: none]",
        ),
        click.option(
            "--format",
            metavar="[litertlm|onnx|gguf|compressed-tensors]",
            shell_complete=offer(completions.formats),
            help="Bundle kind.  [default: what the name of the output says, else litertlm]",
        ),
        click.option(
            "--modalities",
            type=Names(*MODALITIES),
            help="Inputs to support, e.g. text,vision.  [default: all that the checkpoint has and fits]",
        ),
        click.option("--kv", type=click.Choice(KV_TYPES), default="fp32", show_default=True, help="KV cache type."),
        click.option(
            "--recipe",
            type=click.Path(),
            shell_complete=offer(completions.recipes, files=True),
            help="A TOML file, role -> encoding; int4-fast; or auto (./auto is a file).",
        ),
        click.option(
            "--max-bytes", metavar="SIZE", help="For --recipe auto: the bundle's largest size, such as 2.6GB."
        ),
        click.option(
            "--encoding",
            multiple=True,
            metavar="ROLE=ENCODING",
            shell_complete=offer(completions.encodings),
            help="Override the recipe; repeatable.",
        ),
        click.option(
            "--slice",
            metavar="NAME|FILE",
            shell_complete=offer(completions.slices, files=True),
            help="Cut a smaller model out of Gemma 3n E4B: e3.39, or a TOML or CSV file.",
        ),
        click.option(
            "--with-slice",
            metavar="NAME|FILE",
            shell_complete=offer(completions.slices, files=True),
            help="Store a smaller model beside Gemma 3n E4B, of the same weights: e2b, or a TOML or CSV file.",
        ),
        click.option(
            "--drafter",
            help="A Gemma 4's assistant, directory or hub id: what it guesses is run several tokens at once.",
        ),
        click.option("--lora", type=click.Path(path_type=Path), help="PEFT adapter to merge, a directory."),
        click.option(
            "--fit",
            is_flag=True,
            help="If the request exceeds the profile's memory, convert the closest variant that fits.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=Commands)
@click.version_option(package_name="gemma-edge")
def main() -> None:
    """Take a Gemma checkpoint to a phone or an edge box, inside a memory budget."""


main.add_command(completion_main)


@main.command("convert")
@request_options
@click.option(
    "--calibrate",
    is_flag=False,
    flag_value="built-in",
    metavar="[FILE]",
    help="Calibrate 4-bit weights on a text file; without a file, on a built-in text.",
)
@click.option("--gate", default="", metavar="GATES", help="Bounds to keep, such as kl<=0.05,ppl<=1.1.")
@click.option("--accept-loss", is_flag=True, help="Write a bundle that is measured to be not usable, too.")
@click.option("--no-measure", "measure", flag_value=False, default=True, help="Do not measure what is lost.")
@click.option("--sign", type=click.Path(path_type=Path), help="Private key: `gemma-edge sign` the bundle with it, too.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
def convert_main(as_json: bool, sign: Path | None, **request: Any) -> None:
    """Convert a checkpoint into one bundle, streaming: memory stays flat however large the model.

    What is lost is measured on the way. Exit status 3, and no bundle: it is not usable, or a gate failed.
    """
    from gemma_edge.converter.convert import convert
    from gemma_edge.converter.progress import bars
    from gemma_edge.converter.provenance.beside import PrivateKey, describe_and_sign

    key = None if sign is None else PrivateKey.load(user_path(sign))  # refused before hours of work
    with bars(Console(stderr=True)) as stage:
        report = convert(stage=stage, **request)
    if key is not None:
        describe_and_sign(user_path(request["out"]), key)
    if as_json:
        click.echo(json.dumps(report.values, indent=2))
    else:
        report.print(Console())


@main.command("plan")
@request_options
@click.option("--slices", is_flag=True, help="Show every published slice of E4B for this request.")
def plan_main(as_json: bool, checkpoint: str | None, slices: bool, **request: Any) -> None:
    """Show every size and the memory a run will need, to the byte, before a weight is converted.

    Without --checkpoint an official model is planned offline, from what is published of it.
    """
    from gemma_edge.converter.calibrate.planning import lay_out, plan_for, published_plan
    from gemma_edge.converter.plan.target import Target
    from gemma_edge.converter.progress import bars
    from gemma_edge.converter.report import plan_values, print_plan, print_sections, section_values

    asked = Target.parse(**request)
    if slices:
        from gemma_edge.converter.plan.slices import print_slices, slice_values

        rows = slice_values(asked)
        click.echo(json.dumps(rows, indent=2)) if as_json else print_slices(rows, asked, Console())
        return
    plan, bundle = (published_plan(asked) if checkpoint is None else None), None
    if plan is None:
        with bars(Console(stderr=True)) as stage:
            source, plan = plan_for(asked, checkpoint, stage)
        bundle = lay_out(plan, source)
    if as_json:
        sizes = {} if bundle is None else {"sections": section_values(bundle), "bundle_bytes": bundle.nbytes}
        click.echo(json.dumps(plan_values(plan) | sizes, indent=2))
        return
    print_plan(plan, Console())
    if bundle is None:
        click.echo("planned from the published configuration; add --checkpoint for the sections of the file")
    else:
        print_sections(bundle, Console())


@main.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect_main(bundle: Path, as_json: bool) -> None:
    """Show what a bundle or an ONNX directory holds: graphs, tensors with encodings, metadata and hashes."""
    from gemma_edge.converter.plan.output import reader_of

    bundle = user_path(bundle)
    reader = reader_of(bundle)
    values = reader.inspect(bundle)
    if as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        reader.show(values, Console())


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
    if variable("convert") in os.environ:  # a shell asks
        convert_main(prog_name="convert")
    main(["convert", *sys.argv[1:]], prog_name="gemma-edge")
