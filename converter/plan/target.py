"""What the user asks for, as one value, checked before any file is opened."""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from gemma_edge.converter.models import gemma3, gemma3n
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize.recipes import NAMES as PRECISIONS
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.profiles.device import DeviceProfile
from gemma_edge.profiles.errors import GemmaEdgeError

DEFAULT_CONTEXT_TOKENS = 4096
DEFAULT_PREFILL_TOKENS = (16, 128)
"""A large chunk for speed (longer ones cost activation memory: 70 MB at 128) and a small one so that a turn can end
close to the end of the context, where a padded large chunk would not fit."""


ONNX_INT4_BLOCKS = (256, 128, 64, 32)
"""ONNX Runtime stores a scale per block anyway, so there each int4 block gets its own, the larger the better: E4B has
room in 3 GiB with blocks of 256, not with 128. Blocks of 32 would lose slightly less (KL 1.28e-3 instead of 1.39e-3 of
128 on tiny-gemma3n, see int4.toml), for two fifths more bytes to read per token."""


class TargetError(GemmaEdgeError):
    """A request that cannot work, whatever the checkpoint, or that this checkpoint does not fit."""


BUILT_IN_TEXT = "built-in"


@dataclass(frozen=True)
class CalibrationText:
    """What a checkpoint is run on to see what its layers are given. name: of the file, or BUILT_IN_TEXT."""

    name: str
    content: str = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of the content in UTF-8."""
        return hashlib.sha256(self.content.encode()).hexdigest()


class Format(StrEnum):
    """The file that `convert` writes."""

    LITERTLM = "litertlm"  # LiteRT-LM's bundle
    TASK = "task"  # MediaPipe LLM Inference's bundle, for its legacy and web users
    ONNX = "onnx"  # a directory for ONNX Runtime and transformers.js


class KVType(StrEnum):
    """How keys and values are kept at run time. fp32 with rings needs less memory than fp16: see the README."""

    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True)
class Size:
    """An official model: the numbers that tell it from others."""

    name: str
    family: str
    layers: int
    width: int
    hidden: int


SIZES = {
    size.name: size
    for size in (
        Size("e2b", gemma3n.FAMILY, layers=30, width=2048, hidden=8192),
        Size("e4b", gemma3n.FAMILY, layers=35, width=2048, hidden=16384),
        Size("1b", gemma3.FAMILY, layers=26, width=1152, hidden=6912),
    )
}
CUSTOM = "custom"


@dataclass(frozen=True)
class Target:
    """A request: which model, how precise, for how long a context, and for which device.

    size: a key of SIZES, or "custom". precision: the name of a built-in recipe. recipe: what is really used; the
    precision's own unless a file was given. context_tokens: None means 4096, or the model's maximum if that is less.
    prefill_tokens: chunk lengths of the prefill signatures; an ONNX graph takes any. fit: where the profile is too
    small, take the nearest request that fits instead of refusing. modalities: what the model is to take, text among it;
    None means all that the checkpoint has and the profile can bear. calibration: what weights are rounded for; None
    rounds each for itself. max_bytes: of the bundle, for which the encodings are chosen by measuring; None takes those
    of the recipe. lora: directory of a PEFT adapter to merge.
    """

    size: str
    precision: str
    recipe: Recipe
    context_tokens: int | None = None
    prefill_tokens: tuple[int, ...] = DEFAULT_PREFILL_TOKENS
    kv: KVType = KVType.FP32
    format: Format = Format.LITERTLM
    profile: DeviceProfile | None = None
    fit: bool = False
    modalities: tuple[Modality, ...] | None = None
    calibration: CalibrationText | None = None
    max_bytes: int | None = None
    lora: Path | None = None

    def __post_init__(self) -> None:
        if self.context_tokens is not None and self.context_tokens < 16:
            raise TargetError(f"context {self.context_tokens}: expected at least 16 tokens; give a longer --context")
        lengths = self.prefill_tokens
        if not lengths or any(n < 1 for n in lengths) or sorted(set(lengths)) != list(lengths):
            raise TargetError(
                f"prefill {','.join(map(str, lengths)) or 'empty'}: expected chunk lengths of at least 1, rising; "
                "for example --prefill 16,128"
            )
        if self.format is Format.ONNX and self.kv is not KVType.FP32:
            raise TargetError("kv fp16: the ONNX graphs keep keys and values as fp32; leave --kv out")
        if self.modalities is not None and Modality.TEXT not in self.modalities:
            raise TargetError(
                f"modalities {','.join(self.modalities) or 'empty'}: expected text among them; for example "
                "--modalities text,vision"
            )
        if self.format is Format.TASK and (self.modalities or (Modality.TEXT,)) != (Modality.TEXT,):
            raise TargetError(
                f"modalities {','.join(self.modalities or ())}: a .task bundle takes text only; use --format litertlm"
            )
        if self.fit and self.profile is None:
            raise TargetError("fit: expected a profile to fit into, found none; add --profile")

    @classmethod
    def split_name(cls, name: str) -> tuple[str, str]:
        """("e2b", "int4") of "e2b-int4". Raises TargetError with the grammar for anything else."""
        size, _, precision = name.partition("-")
        if size not in (*SIZES, CUSTOM) or precision not in PRECISIONS:
            raise TargetError(
                f"target {name!r}: expected {{{','.join((*SIZES, CUSTOM))}}}-{{{','.join(PRECISIONS)}}}; "
                "`gemma-edge targets` lists them"
            )
        return size, precision

    def recipe_for(self, model: Model) -> Recipe:
        """The recipe, with what the model and the format decide."""
        recipe = self.recipe.for_shares(model.shares)
        return recipe.with_blocks(*ONNX_INT4_BLOCKS) if self.format is Format.ONNX else recipe

    @property
    def name(self) -> str:
        """The text that `split_name` reads back."""
        return f"{self.size}-{self.precision}"

    def context_for(self, model: Model) -> int:
        """Tokens of context for this model. Raises TargetError where the request exceeds the model or a chunk it."""
        longest = model.config.max_context_tokens
        context = self.context_tokens or min(DEFAULT_CONTEXT_TOKENS, longest)
        if context > longest:
            raise TargetError(
                f"context {context}: this model takes up to {longest} tokens; give --context {longest} or less"
            )
        if self.prefill_tokens[-1] > context and self.format is not Format.ONNX:
            raise TargetError(
                f"prefill {self.prefill_tokens[-1]}: longer than the context of {context} tokens; "
                f"give chunk lengths up to {context}"
            )
        return context

    def check(self, model: Model) -> None:
        """Refuse a checkpoint that is not the size the target names, or lacks a modality."""
        for modality in self.modalities or ():
            if modality not in model.modalities:
                raise TargetError(
                    f"modalities {','.join(self.modalities or ())}: the checkpoint has {', '.join(model.modalities)}; "
                    f"leave {modality} out"
                )
        if self.size == CUSTOM:
            return
        size = SIZES[self.size]
        config = model.config
        hidden = config.hidden if isinstance(config, gemma3.Config) else max(config.hidden)
        expected = {"family": size.family, "layers": size.layers, "hidden_size": size.width, "ffn": size.hidden}
        found = {"family": model.family, "layers": len(config.attention), "hidden_size": config.width, "ffn": hidden}
        wrong = [f"{key} {found[key]}, expected {expected[key]}" for key in expected if found[key] != expected[key]]
        if wrong:
            raise TargetError(
                f"target {self.name}: the checkpoint has {'; '.join(wrong)}; "
                f"use another size, or custom-{self.precision} for a model of your own shape"
            )
