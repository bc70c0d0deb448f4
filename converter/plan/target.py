"""What the user asks for, as one value, checked before any file is opened."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Final, Self, TypeVar, Unpack

from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.matformer.files import slice_of
from gemma_edge.converter.models.matformer.pair import large_model
from gemma_edge.converter.models.matformer.slices import E2B, PUBLISHED, Slice, is_published_name, published
from gemma_edge.converter.models.official import OFFICIAL, official_model
from gemma_edge.converter.plan import lengths
from gemma_edge.converter.plan.format import FORMATS, LITERTLM, Format, KVType
from gemma_edge.converter.plan.options import Options
from gemma_edge.converter.printing import choices
from gemma_edge.converter.quantize.recipes import NAMES as PRECISIONS
from gemma_edge.converter.quantize.recipes import OTHER_NAMES, Recipe
from gemma_edge.converter.tokenizer.windows import read_text
from gemma_edge.profiles.device import DeviceProfile, load_profile
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.paths import user_path
from gemma_edge.profiles.sizes import parse_size

DEFAULT_CONTEXT_TOKENS = 4096


class TargetError(GemmaEdgeError):
    """A request that cannot work, whatever the checkpoint, or that this checkpoint does not fit."""


BUILT_IN_TEXT = "built-in"
_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True)
class CalibrationText:
    """What a checkpoint is run on to see what its layers are given. name: of the file, or BUILT_IN_TEXT."""

    name: str
    content: str = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of the content in UTF-8."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def format_of(out: Path, asked: str | None) -> str | None:
    """The format that was asked for, else what the name of the output says.

    Raises TargetError where the two contradict each other.
    """
    suffixes = {known.suffix: name for name, known in FORMATS.items() if known.suffix} | {".task": "task"}
    named = suffixes.get(out.suffix)
    if asked is not None and named is not None and asked != named:
        raise TargetError(
            f"out {out}: its name says {named}, --format {asked}; leave --format out, or choose another name"
        )
    return asked or named


CUSTOM = "custom"
WHOLE_OF_SLICES: Final = "e4b"
"""What the published slices are cut from."""


AUTO: Final = "auto"
"""The recipe that is chosen by measuring."""


@dataclass(frozen=True)
class Target:
    """A request: which model, how precise, for how long a context, and for which device.

    size: a key of OFFICIAL, or "custom". precision: the name of a built-in recipe. recipe: what is really used; the
    precision's own unless a file was given. context_tokens: None means 4096, or the model's maximum if that is less.
    prefill_tokens: chunk lengths of the prefill signatures; an ONNX graph takes any. draft_tokens: how many tokens each
    verify signature runs, all but the first of them guessed. batch_rows: of how many conversations each batch takes a
    step. fit: where the profile is too small, take the nearest request that fits instead of refusing. modalities: what
    the model is to take, text among it; None means all that the checkpoint has and the profile can bear. calibration:
    what weights are rounded for; None rounds each for itself. max_bytes: of the bundle, for which the encodings are
    chosen by measuring; None takes those of the recipe. lora: directory of a PEFT adapter to merge. slice: what to cut
    out of the checkpoint; None takes all. beside: what to store beside the whole, of the same weights. drafter: the
    checkpoint that guesses: directory or hub id.
    """

    size: str
    precision: str
    recipe: Recipe
    context_tokens: int | None = None
    prefill_tokens: tuple[int, ...] = lengths.DEFAULT_PREFILL_TOKENS
    spans: tuple[int, ...] | None = None
    draft_tokens: tuple[int, ...] = ()
    batch_rows: tuple[int, ...] = ()
    kv: KVType = KVType.FP32
    format: Format = LITERTLM
    profile: DeviceProfile | None = None
    fit: bool = False
    modalities: tuple[Modality, ...] | None = None
    calibration: CalibrationText | None = None
    max_bytes: int | None = None
    lora: Path | None = None
    slice: Slice | None = None
    beside: Slice | None = None
    drafter: str | None = None

    def __post_init__(self) -> None:
        if self.context_tokens is not None and self.context_tokens < 16:
            raise TargetError(f"context {self.context_tokens}: expected at least 16 tokens; give a longer --context")
        lengths = self.prefill_tokens
        if not lengths or any(n < 1 for n in lengths) or sorted(set(lengths)) != list(lengths):
            raise TargetError(
                f"prefill {','.join(map(str, lengths)) or 'empty'}: expected chunk lengths of at least 1, rising; "
                "for example --prefill 16,128"
            )
        if self.spans is not None and (any(n < 1 for n in self.spans) or sorted(set(self.spans)) != list(self.spans)):
            raise TargetError(
                f"spans {','.join(map(str, self.spans))}: expected lengths of at least 1, rising; for example "
                "--spans 1024,4096"
            )
        self._check_draft()
        self._check_batch()
        if self.kv not in self.format.kv_types:
            kept = " or ".join(self.format.kv_types)
            raise TargetError(f"kv {self.kv}: {self.format.name} keeps keys and values as {kept}; use --kv {kept}")
        if self.modalities is not None and Modality.TEXT not in self.modalities:
            raise TargetError(
                f"modalities {','.join(self.modalities) or 'empty'}: expected text among them; for example "
                "--modalities text,vision"
            )
        if not self.format.encoders and self.modalities is not None and len(self.modalities) > 1:
            raise TargetError(
                f"modalities {','.join(self.modalities)}: {self.format.name} holds the text model alone; "
                "use --modalities text"
            )
        if self.beside is not None:
            self._check_pair(self.beside)
        if self.drafter is not None:
            self._check_drafter(self.drafter)
        if self.fit and self.profile is None:
            raise TargetError("fit: expected a profile to fit into, found none; add --profile")

    def _check_draft(self) -> None:
        asked, named, longest = self.draft_tokens, ",".join(map(str, self.draft_tokens)), self.prefill_tokens[-1]
        if asked and not self.format.verifies:
            said = f"{self.format.name} verifies nothing; use --format {LITERTLM.name}, or leave --draft out"
            raise TargetError(f"draft {named}: {said}")
        if any(n < 2 for n in asked) or sorted(set(asked)) != list(asked):
            raise TargetError(
                f"draft {named}: expected lengths of at least 2, one token and what is guessed after it, rising; for "
                "example --draft 4"
            )
        if asked and asked[-1] > longest:  # a ring has room for a prefill behind its window
            said = f"longer than the longest prefill chunk, {longest}; give lengths up to that"
            raise TargetError(f"draft {asked[-1]}: {said}")

    def _check_batch(self) -> None:
        sizes, asked = self.batch_rows, ",".join(map(str, self.batch_rows))
        if sizes and not self.format.verifies:
            raise TargetError(
                f"batch {asked}: {self.format.name} has no signatures for several conversations; use --format "
                f"{LITERTLM.name}, or leave --batch out"
            )
        if any(not 2 <= n <= lengths.MOST_BATCH_ROWS for n in sizes) or sorted(set(sizes)) != list(sizes):
            raise TargetError(
                f"batch {asked}: expected numbers of conversations from 2 to {lengths.MOST_BATCH_ROWS}, rising; for "
                "example --batch 4"
            )

    def _check_drafter(self, drafter: str) -> None:
        if not self.format.verifies:
            said = f"{self.format.name} has no place for one; use --format {LITERTLM.name}, or leave --drafter out"
            raise TargetError(f"drafter {drafter}: {said}")
        if self.prefill_tokens[-1] < 2:
            raise TargetError(
                f"drafter {drafter}: its guesses need a prefill chunk of at least 2; give a longer --prefill"
            )
        if self.beside is not None:
            raise TargetError(f"drafter {drafter}: expected one model beside it, found two; leave one of them out")

    @property
    def verify_tokens(self) -> int | None:
        """How many tokens LiteRT-LM runs at once, all but the first of them the drafter's guesses; None without one."""
        if self.drafter is None:
            return None
        longest = self.draft_tokens[-1] if self.draft_tokens else lengths.DRAFTER_TOKENS
        return min(longest, self.prefill_tokens[-1])

    @property
    def all_verify_tokens(self) -> tuple[int, ...]:
        """How many tokens each verification runs: those of --draft, or LiteRT-LM's alone."""
        return self.draft_tokens or (() if self.verify_tokens is None else (self.verify_tokens,))

    def _check_pair(self, beside: Slice) -> None:
        if not self.format.pairs:
            raise TargetError(
                f"with-slice {beside.name}: {self.format.name} holds one model; use --format {LITERTLM.name}"
            )
        if self.slice is not None:
            raise TargetError(
                f"slice {self.slice.name} with-slice {beside.name}: the larger of two models is the whole checkpoint; "
                "leave --slice out"
            )
        if beside.name == self.size:
            raise TargetError(f"with-slice {beside.name}: both models would be called so; give the slice another name")

    @classmethod
    def parse(cls, target: str, **options: Unpack[Options]) -> Self:
        """The request as one checked value, from what the command line or a caller gives.

        target: "e2b-int4" and so on. Raises TargetError, RecipeError, TextError or ProfileError.
        """
        names, precision = cls.split_name(target)
        size, _, beside = names.partition("+")
        cut = size if is_published_name(size) else ""
        recipe, max_bytes, modalities = options.get("recipe"), options.get("max_bytes"), options.get("modalities")
        profile, calibrate, lora = options.get("profile"), options.get("calibrate"), options.get("lora")
        prefill, spans = options.get("prefill"), options.get("spans")
        draft, drafter = options.get("draft"), options.get("drafter")
        is_automatic = recipe == AUTO  # a Path, or "./auto", is a file
        if is_automatic != (max_bytes is not None):
            raise TargetError("recipe auto and max-bytes: expected both or none; give --recipe auto --max-bytes 2.6GB")
        if recipe is None or is_automatic:
            base = Recipe.named(precision)
        else:
            base = Recipe.named(str(recipe)) if recipe in OTHER_NAMES else Recipe.load(user_path(recipe))
        return cls(
            size=size if size in (*OFFICIAL, CUSTOM) else WHOLE_OF_SLICES,
            precision=precision,
            recipe=reduce(Recipe.overridden, options.get("encoding", ()), base),
            context_tokens=options.get("context"),
            prefill_tokens=lengths.usual_prefill(options.get("context")) if prefill is None else tuple(prefill),
            spans=None if spans is None else tuple(spans),
            draft_tokens=tuple(draft or ()),
            batch_rows=tuple(options.get("batch") or ()),
            kv=_choice("kv", options.get("kv", KVType.FP32), KVType),
            format=_format(options.get("format") or LITERTLM.name),
            profile=None if profile is None else load_profile(profile),
            fit=options.get("fit", False),
            modalities=None if modalities is None else _modalities(modalities),
            calibration=None if calibrate is None else calibration_text(calibrate),
            max_bytes=None if max_bytes is None else _bytes(max_bytes),
            lora=None if lora is None else user_path(lora),
            slice=cls._slice(target, cut, options.get("slice")),
            beside=cls._slice(target, beside, options.get("with_slice")),
            drafter=None if drafter is None else str(drafter),
        )

    @classmethod
    def split_name(cls, name: str) -> tuple[str, str]:
        """("e2b", "int4") of "e2b-int4", ("e2.98-block", "int8") of "e2.98-block-int8", ("e4b+e2b", "int4") of two.

        Raises TargetError with the grammar for anything else.
        """
        size, _, precision = name.rpartition("-")
        large, plus, small = size.partition("+")
        is_known = size in (*OFFICIAL, CUSTOM) or is_published_name(size)
        is_pair = plus and large in (WHOLE_OF_SLICES, CUSTOM) and (small == E2B or is_published_name(small))
        if not (is_known or is_pair) or precision not in PRECISIONS:
            raise TargetError(
                f"target {name!r}: expected {{{','.join((*OFFICIAL, CUSTOM))}}}-{{{','.join(PRECISIONS)}}}, or a slice "
                "of E4B such as e3.39-int4, or both such as e4b+e2b-int4; `gemma-edge targets` lists them"
            )
        return size, precision

    @classmethod
    def _slice(cls, target: str, name: str, choice: str | Path | None) -> Slice | None:
        """Of the target's name, or of the option; name: "" for none. Raises TargetError and SliceError."""
        if not name:
            return None if choice is None else slice_of(choice)
        if choice is not None:
            raise TargetError(f"target {target} and slice {choice}: both name a slice; leave one out")
        return published(name)

    def official_model(self) -> Model:
        """The published model of this size, cut or stored as asked for. Raises SliceError where it cannot be."""
        return self.stored(official_model(self.size, self.slice))

    def stored(self, model: Model) -> Model:
        """In the parts that another model shares, where one is to lie beside it. Raises SliceError."""
        return model if self.beside is None else large_model(model, self.beside)

    def recipe_for(self, model: Model) -> Recipe:
        """The recipe, with what the model and the format decide."""
        is_near = self.calibration is None and not model.with_modalities(self.modalities or ()).has_overlays
        return self.format.recipe(self.recipe.for_shares(model.shares), model.config.tied_head, is_near)

    @property
    def name(self) -> str:
        """The text that `split_name` reads back."""
        is_cut = self.size == WHOLE_OF_SLICES and self.slice is not None and self.slice.name in PUBLISHED
        size = self.slice.name if is_cut and self.slice else self.size
        if self.beside is not None and self.beside.name in (E2B, *PUBLISHED):
            size += f"+{self.beside.name}"
        return f"{size}-{self.precision}"

    def context_for(self, model: Model) -> int:
        """Tokens of context for this model. Raises TargetError where the request exceeds the model or a chunk it."""
        longest = model.config.max_context_tokens
        context = self.context_tokens or min(DEFAULT_CONTEXT_TOKENS, longest)
        if context > longest:
            raise TargetError(
                f"context {context}: this model takes up to {longest} tokens; give --context {longest} or less"
            )
        if self.prefill_tokens[-1] > context and not self.format.any_prefill:
            raise TargetError(
                f"prefill {self.prefill_tokens[-1]}: longer than the context of {context} tokens; "
                f"give chunk lengths up to {context}"
            )
        return context

    def spans_for(self, model: Model) -> tuple[int, ...]:
        """How many tokens of this model's context get signatures of their own. Raises TargetError as `context_for`."""
        context = self.context_for(model)
        return lengths.usual_spans(context) if self.spans is None else tuple(n for n in self.spans if n < context)

    def check(self, model: Model) -> None:
        """Refuse a checkpoint of another size than the target names, without a modality, or of what is not written."""
        for modality in self.modalities or ():
            if modality not in model.modalities:
                raise TargetError(
                    f"modalities {','.join(self.modalities or ())}: the checkpoint has {', '.join(model.modalities)}; "
                    f"leave {modality} out"
                )
        self._check_static(model)
        if self.size == CUSTOM:
            return
        expected, found = _shape(self.official_model()), _shape(model)
        wrong = [f"{key} {found[key]}, expected {expected[key]}" for key in expected if found[key] != expected[key]]
        if wrong:
            raise TargetError(
                f"target {self.name}: the checkpoint has {'; '.join(wrong)}; "
                f"use another size, or custom-{self.precision} for a model of your own shape"
            )

    def _check_static(self, model: Model) -> None:
        if all(spec.static is None for spec in model.tensors.values()):
            return
        levels = "the checkpoint's layers have int8 levels of their own for what they read and give"
        if not self.format.runs:
            raise TargetError(f"format {self.format.name}: {levels}, which it has no place for; use litertlm or onnx")
        if self.beside is not None:
            raise TargetError(f"target {self.name}: {levels}, which two models cannot share; convert one of them")
        if self.lora is not None:
            raise TargetError(
                f"--lora: {levels}, where an adapter's share has none; use the checkpoint it was made for"
            )


def _shape(model: Model) -> dict[str, str | int]:
    """The numbers that tell official models from each other, and from others."""
    config = model.config
    layers, ffn = len(config.attention), config.ffn_width
    return {"family": model.family, "layers": layers, "hidden_size": config.width, "ffn": ffn}


def calibration_text(choice: str | Path) -> CalibrationText:
    """The built-in text, or that of a file. Raises TextError naming the file."""
    if str(choice) == BUILT_IN_TEXT:
        text = resources.files("gemma_edge.converter.calibrate").joinpath("text.txt").read_text("utf-8")
        return CalibrationText(BUILT_IN_TEXT, text)
    path = user_path(choice)
    return CalibrationText(path.name, read_text(path))


def _choice(option: str, value: str, choices: type[_Choice]) -> _Choice:
    try:
        return choices(value)
    except ValueError:
        raise TargetError(f"{option} {value!r}: expected {' or '.join(choices)}; use one of them") from None


def _format(name: str) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    if name == "task":  # which earlier versions wrote
        raise TargetError(
            "format 'task': MediaPipe's bundles are not written any more; use --format litertlm, for LiteRT-LM, which "
            "has taken the place of MediaPipe's LLM Inference"
        )
    raise TargetError(f"format {name!r}: expected {choices(FORMATS)}; use one of them")


def _bytes(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        raise TargetError(f"max-bytes {text!r}: expected a number with its unit, such as 2.6GB or 900MiB") from None


def _modalities(names: Sequence[str]) -> tuple[Modality, ...]:
    """In the order of Modality, each once."""
    chosen = {_choice("modalities", name, Modality) for name in names}
    return tuple(modality for modality in Modality if modality in chosen)
