"""What a caller may say about a conversion, before it is checked; `Target.parse` checks it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict


class Options(TypedDict, total=False):
    """What a request may say, named as on the command line.

    profile: a device profile's name or file; what does not fit it is refused; with fit, the closest variant that
    fits is converted. context, prefill, draft: tokens; prefill left out is 16,128, as far as the context allows, and
    draft none. batch: conversations that take a step together, by default none. recipe: a file, one of the other named
    recipes, or "auto", which measures which encodings lose least in a bundle of max_bytes ("2.6GB").
    encoding: "ROLE=ENCODING" for roles in which the recipe is overridden. modalities: of "text", "vision" and "audio";
    left out, all that the checkpoint has and the profile can bear. calibrate: a text file, or "built-in", that layers
    are rounded for. lora: a PEFT adapter's directory. slice: of a Gemma 3n E4B, a published name or a file that
    describes it; a target of such a name (e3.39-int4) is the same. with_slice: likewise, a smaller model to store
    beside the whole, of the same weights; a target of two names (e4b+e2b-int4) is the same. drafter: a directory or
    hub id of the assistant that is published beside a Gemma 4.
    """

    profile: str | None
    context: int | None
    prefill: Sequence[int] | None
    spans: Sequence[int] | None
    draft: Sequence[int] | None
    batch: Sequence[int] | None
    kv: str
    recipe: str | Path | None
    encoding: Sequence[str]
    format: str | None
    modalities: Sequence[str] | None
    fit: bool
    calibrate: str | Path | None
    max_bytes: str | None
    lora: str | Path | None
    slice: str | Path | None
    with_slice: str | Path | None
    drafter: str | Path | None
