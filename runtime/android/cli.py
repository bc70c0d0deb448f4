"""`gemma-edge android push`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gemma_edge.runtime.android.push import Stage


@click.group("android")
def android_main() -> None:
    """Bring bundles to a phone for the app in android_demo."""


@android_main.command("push")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--serial", envvar="ANDROID_SERIAL", help="Which device, as `adb devices` prints it.  [default: the only one]"
)
def push_main(bundle: Path, serial: str | None) -> None:
    """Copy a bundle, its report and its signature to the phone and verify the bundle there.

    Run again after a break to continue.
    """
    from gemma_edge.profiles.sizes import format_bytes
    from gemma_edge.runtime.android.adb import choose_phone, find_adb
    from gemma_edge.runtime.android.push import LocalBundle, push

    phone = choose_phone(find_adb(), serial)
    with _bars() as stage:
        pushed = push(LocalBundle.open(bundle, stage), phone, stage)
    sent = f"sent {format_bytes(pushed.sent_bytes)}" if pushed.sent_bytes else "was there already"
    click.echo(f"{pushed.path} on {phone.device}: {format_bytes(pushed.nbytes)}, {sent}")
    click.echo(f"sha256 {pushed.sha256}, the same on the phone")


@contextmanager
def _bars() -> Iterator["Stage"]:
    """A bar for each stage on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<6}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def stage(name: str, total_bytes: int) -> Callable[[int], None]:
            task = bars.add_task(name, total=total_bytes)
            return lambda n: bars.advance(task, n)

        yield stage
