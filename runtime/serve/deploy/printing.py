"""`gemma-edge serve --print-unit` and `--print-container`: the file for what the rest of the command line asks."""

from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

_OWN = ("host", "port", "profile", "api_key_file", "policy", "cache_dir", "print_file")


def print_options(command: click.Command) -> click.Command:
    """A `serve` command with the two options, which print and end."""
    for kind, what in (("unit", "a systemd unit"), ("container", "a Containerfile")):
        option = click.Option(
            [f"--print-{kind}", "print_file"],
            flag_value=kind,
            help=f"Print {what} for this command, and end; needs --profile.",
        )
        command.params.append(option)
    run = command.callback
    assert run is not None

    def print_or_run(print_file: Literal["unit", "container"] | None, **values: object) -> None:
        if print_file is None:
            run(**values)
        else:
            click.echo(deployed(click.get_current_context(), print_file), nl=False)

    command.callback = print_or_run
    return command


def deployed(context: click.Context, kind: Literal["unit", "container"]) -> str:
    """The file for a `serve` command with these values. Raises DeployError, ProfileError."""
    from gemma_edge.runtime.serve.deploy.files import Deployment

    values = context.params
    if values["bundle"] is None or values["new_key"] is not None:
        raise click.UsageError("say for which BUNDLE; a key is made by a command of its own")
    if values["profile"] is None:
        raise click.UsageError("say for which device: --profile")
    if values["cache_dir"] is not None:
        raise click.UsageError("a service keeps its cache in /var/cache/gemma-edge; leave out --cache-dir")
    deployment = Deployment(
        bundle=Path(values["bundle"]).absolute(),
        profile=values["profile"],
        host=values["host"],
        port=values["port"],
        api_key_file=_absolute(values["api_key_file"]),
        policy_file=_absolute(values["policy"]),
        options=_others(context),
    )
    return deployment.unit() if kind == "unit" else deployment.container()


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _others(context: click.Context) -> tuple[str, ...]:
    """Options that were given and that no file has a place of its own for, as they were spelt."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not isinstance(parameter, click.Option) or not given or name in _OWN:
            continue
        value, option = context.params[name], parameter.opts[0]
        if parameter.is_flag:
            words.append(option)
        elif value is not None:  # None is what it would be without the option
            for each in value if parameter.multiple else (value,):
                words += [option, str(each)]
    return tuple(words)
