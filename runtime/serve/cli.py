"""`gemma-edge serve`."""

import errno
import logging
from pathlib import Path
from typing import Literal

import click

from gemma_edge.profiles.completion import offer_profiles
from gemma_edge.runtime.cli import speculative_option
from gemma_edge.runtime.serve.deploy.printing import print_options


class _Slots(click.ParamType[int | None]):
    """A number, or "auto" for as many as the profile pays for."""

    name = "slots"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "auto":
            return None
        try:
            return int(str(value))
        except ValueError:
            self.fail(f"{value!r} is no number, expected one or auto", param, ctx)


@print_options
@click.command("serve")
@click.argument("bundle", type=click.Path(), required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for every network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any free one.")
@click.option("--model-id", help="What clients call the model.  [default: the file's name]")
@click.option(
    "--profile",
    shell_complete=offer_profiles,
    help="Keep this device's memory budget; refuse a bundle that does not fit.",
)
@click.option("--context", type=int, help="A context shorter than the bundle's.")
@click.option("--slots", type=_Slots(), default="auto", show_default=True, help="Chats answered and kept at once.")
@click.option("--threads", type=int, help="Cores to use.  [default: at most 4]")
@speculative_option
@click.option(
    "--queue", "waiting", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that wait."
)
@click.option("--max-output-tokens", type=click.IntRange(min=1), help="Longest reply of a request that does not say.")
@click.option("--truncate", type=click.Choice(["oldest"]), help="Drop the oldest turns of a chat that is too long.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Hashes of the keys that may ask.")
@click.option("--policy", type=click.Path(path_type=Path), help="What may be asked and answered: a content policy.")
@click.option("--new-key", metavar="NAME", help="Add a key to --api-key-file, print it, and end.")
@click.option("--metrics", is_flag=True, help="Serve /metrics for Prometheus.")
@click.option("--cors-origin", "cors_origins", multiple=True, help="Pages of this origin may ask. Can be repeated.")
@click.option("--alert-webhook", "webhook", help="POST alerts as JSON to this address.")
@click.option(
    "--alert",
    "thresholds",
    metavar="NAME=VALUE",
    multiple=True,
    help="A threshold, such as max_response_s=5 or min_tokens_per_s=off. Can be repeated.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Keep packed weights here, and chats that are found again after a restart.  [default: weights in "
    "~/.cache/gemma-edge, chats in memory only]",
)
def serve_main(
    bundle: str | None,
    host: str,
    port: int,
    model_id: str | None,
    profile: str | None,
    context: int | None,
    slots: int | None,
    threads: int | None,
    speculative_decoding: bool | None,
    waiting: int,
    max_output_tokens: int | None,
    truncate: Literal["oldest"] | None,
    api_key_file: Path | None,
    policy: Path | None,
    new_key: str | None,
    metrics: bool,
    cors_origins: tuple[str, ...],
    webhook: str | None,
    thresholds: tuple[str, ...],
    cache_dir: Path | None,
) -> None:
    """Answer OpenAI's API over HTTP: chats, completions, images and recordings, inside the device's memory budget.

    Ctrl-C or SIGTERM ends it: replies that are being written come to their end, and with --cache-dir chats are saved.
    """
    if new_key is not None:
        _print_new_key(api_key_file, new_key)
        return
    if bundle is None:
        raise click.UsageError("Missing argument 'BUNDLE'.")
    from gemma_edge.runtime.config import Backend
    from gemma_edge.runtime.engine import Engine
    from gemma_edge.runtime.serve.monitor.alerts import Thresholds
    from gemma_edge.runtime.serve.settings import ServeError, Settings

    try:
        from gemma_edge.runtime.serve.app import create_app
        from gemma_edge.runtime.serve.server import serve
    except ImportError as error:
        raise ServeError(f"{error.name} is not installed; pip install 'gemma-edge[serve]'") from error

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = Settings(
        model_id=model_id or Path(bundle).name.removesuffix(".litertlm"),
        host=host,
        port=port,
        api_key_file=api_key_file,
        policy_file=policy,
        metrics=metrics,
        cors_origins=cors_origins,
        webhook=webhook,
        thresholds=Thresholds.parse(thresholds),
        cache_dir=cache_dir,
        truncate=truncate,
        waiting=waiting,
        max_output_tokens=max_output_tokens,
    )
    folder = None if cache_dir is None else str(cache_dir)
    cpu = Backend.CPU(thread_count=threads)
    with Engine(
        bundle,
        cpu,
        max_num_tokens=context,
        cache_dir=folder,
        enable_speculative_decoding=speculative_decoding,
        profile=profile,
        slots=slots,
    ) as engine:
        room = f"{engine.slots} slots of {engine.max_num_tokens} tokens"
        try:
            serve(
                create_app(engine, settings),
                settings,
                began=lambda address: click.echo(f"{settings.model_id} at {address}/v1, {room}", err=True),
            )
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while")[0]
            other = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
            raise ServeError(f"{host}:{port} cannot be listened on ({reason}); choose another {other}") from error


def _print_new_key(path: Path | None, name: str) -> None:
    from gemma_edge.runtime.serve.guard.keys import new_key

    if path is None:
        raise click.UsageError("--new-key needs --api-key-file FILE, to which the key's hash is added.")
    click.echo(new_key(path, name))
    click.echo(f"This is the only time that the key of {name} is shown; {path} has its hash.", err=True)
