"""MatFormer (arXiv 2310.07707): the models inside a Gemma 3n E4B, cut out of it without training.

A slice keeps the first rows of each gate and up projection and the first columns of each down projection, and may leave
whole layers out. Source of the rules: Google's MatFormer Lab (google-gemma/cookbook, Gemma_3n) and its table of slices
(dataset google/gemma3n-slicing-configs).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from gemma_edge.converter.models import gemma3n
from gemma_edge.converter.models.fields import Fields
from gemma_edge.profiles.errors import GemmaEdgeError

WHOLE, HALF = Fraction(1), Fraction(1, 2)


class SliceError(GemmaEdgeError):
    """A slice that nobody published, that cannot be read, or that this checkpoint cannot be cut into."""


@dataclass(frozen=True)
class Slice:
    """What to keep of a model.

    ffn: the feed-forward width of each layer that is kept: a number of columns, or a part of the checkpoint's own.
    skipped: the layers of the checkpoint that are left out. mmlu: accuracy of the pre-trained model in percent, as
    Google measured it; None for a slice of one's own.
    """

    name: str
    ffn: tuple[int | Fraction, ...]
    skipped: tuple[int, ...] = ()
    mmlu: float | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers of the checkpoint that become layers 0, 1, ... of the slice."""
        return tuple(i for i in range(len(self.ffn) + len(self.skipped)) if i not in self.skipped)

    def widths(self, hidden: tuple[int, ...]) -> tuple[int, ...]:
        """Columns of each layer that is kept. hidden: of each layer of the checkpoint."""
        return tuple(
            int(width * hidden[layer]) if isinstance(width, Fraction) else width
            for layer, width in zip(self.kept, self.ffn, strict=True)
        )

    def config(self, text_config: Mapping[str, Any]) -> dict[str, Any]:
        """The decoder's config.json of the slice, from that of the whole.

        Raises SliceError where this model cannot be cut so, and ConfigError where its config.json cannot be read.
        """
        if text_config.get("model_type") not in gemma3n.MODEL_TYPES:
            raise SliceError(
                f"slice {self.name}: cut from Gemma 3n, the checkpoint's model_type is "
                f"{text_config.get('model_type')!r}; give Gemma 3n E4B, or leave the slice out"
            )
        whole = gemma3n.Config.from_json(text_config)
        self.check(whole)
        kept, sharing = self.kept, len(whole.attention) - whole.kv_layers
        kinds = Fields(text_config).layer_types(len(whole.attention), 5)
        return {
            **text_config,
            "num_hidden_layers": len(kept),
            "num_kv_shared_layers": sharing - sum(layer >= whole.kv_layers for layer in self.skipped),
            "intermediate_size": list(self.widths(whole.ffn_widths)),
            "layer_types": [kinds[layer] for layer in kept],
            "activation_sparsity_pattern": [whole.sparsity[layer] for layer in kept],
        }

    def checkpoint_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A whole config.json of the slice, from that of the whole. Raises as `config` does."""
        text = self.config(config.get("text_config", config))
        return {**config, "text_config": text} if "text_config" in config else text

    def check(self, whole: gemma3n.Config) -> None:
        """Raises SliceError where this model cannot be cut so."""
        layers = len(whole.attention)
        if len(self.ffn) + len(self.skipped) != layers:
            raise SliceError(
                f"slice {self.name}: {len(self.ffn)} layers kept and {len(self.skipped)} left out, the checkpoint has "
                f"{layers}; give one feed-forward width for each layer that is kept"
            )
        beyond = [layer for layer in self.skipped if layer >= layers]
        if beyond:
            raise SliceError(f"slice {self.name}: leaves out layer {beyond[0]}, the checkpoint has 0 to {layers - 1}")
        donors = {whole.kv_source(layer) for layer in range(whole.kv_layers, layers)}
        if lost := sorted(donors.intersection(self.skipped)):
            raise SliceError(
                f"slice {self.name}: leaves out layer {lost[0]}, whose keys and values layers {whole.kv_layers} to "
                f"{layers - 1} read; keep {', '.join(map(str, sorted(donors)))}"
            )
        if self.mmlu is not None and (layers, whole.kv_layers) != (35, 20):
            raise SliceError(
                f"slice {self.name}: cut from E4B with 35 layers, 20 of which own keys and values; the checkpoint has "
                f"{layers} and {whole.kv_layers}; describe a slice of it in a file (--slice FILE)"
            )
        if self.mmlu is not None and (len({*whole.ffn_widths}) > 1 or whole.ffn_widths[0] % 2):
            raise SliceError(
                f"slice {self.name}: cut from a whole E4B, the checkpoint's feed-forward widths are "
                f"{', '.join(map(str, sorted({*whole.ffn_widths})))}; give the checkpoint that nothing was cut from"
            )
        for layer, width in zip(self.kept, self.widths(whole.ffn_widths), strict=True):
            if not 1 <= width <= whole.ffn_widths[layer]:
                raise SliceError(
                    f"slice {self.name}: width {width} for layer {layer}, expected 1 to {whole.ffn_widths[layer]}, "
                    "which the checkpoint has"
                )


_Row = tuple[float, tuple[Fraction, ...], range]


def _published(
    mmlu: float, *whole: int | range, skipped: range = range(0)
) -> tuple[float, tuple[Fraction, ...], range]:
    wide = {layer for part in whole for layer in ([part] if isinstance(part, int) else part)}
    return mmlu, tuple(WHOLE if layer in wide else HALF for layer in range(35) if layer not in skipped), skipped


_LAST_BLOCK: Final = range(20, 25)

_TABLE: Mapping[str, _Row] = {
    "e1.91": _published(50.9, skipped=_LAST_BLOCK),
    "e1.96": _published(53.4, 4, skipped=_LAST_BLOCK),
    "e2.49": _published(54.5, range(20, 25)),
    "e2.54": _published(55.4, 4, range(20, 25)),
    "e2.69": _published(57.7, 4, 9, 14, range(19, 25)),
    "e2.73": _published(57.1, range(15, 25)),
    "e2.98-layer": _published(59.5, range(15, 25), range(30, 35)),
    "e2.98-block": _published(59.5, range(10, 25)),
    "e3.18": _published(61.8, 4, range(9, 25), 29, 34),
    "e3.24": _published(60.7, range(10, 30)),
    "e3.39": _published(63.0, 4, range(9, 30), 34),
    "e3.49": _published(61.4, range(5, 30)),
    "e3.59": _published(63.4, range(4, 30), 34),
    "e3.79-block": _published(62.0, range(5, 35)),
    "e3.79-layer": _published(63.4, range(4, 35)),
}

PUBLISHED: Mapping[str, Slice] = {
    name: Slice(name, ffn, tuple(skipped), mmlu) for name, (mmlu, ffn, skipped) in _TABLE.items()
}
"""Google's fifteen, by their billions of parameters, the smallest first. Two names stand for two slices each, cut layer
by layer or in blocks of five layers; e1.91 is the official E2B, e3.79-block has 3.74."""

WHOLE_MMLU: Final = 62.3
"""Of the whole."""


def is_published_name(name: str) -> bool:
    """Whether a slice of that name was published, also where it is one of two."""
    return name in PUBLISHED or any(known.startswith(f"{name}-") for known in PUBLISHED)


E2B: Final = "e2b"
"""The official one: e1.91 by another name."""


def published(name: str) -> Slice:
    """Raises SliceError, with the names there are, for anything else."""
    if name == E2B:
        return replace(PUBLISHED["e1.91"], name=E2B)
    if name in PUBLISHED:
        return PUBLISHED[name]
    two = [known for known in PUBLISHED if known.startswith(f"{name}-")]
    if two:
        raise SliceError(f"slice {name}: the name of two slices; give {' or '.join(two)}")
    raise SliceError(f"slice {name!r}: neither a file nor one of {', '.join(PUBLISHED)}; use one of them")


def frontier() -> tuple[Slice, ...]:
    """Those published that no smaller one equals in MMLU; the largest first."""
    best: list[Slice] = []
    for found in PUBLISHED.values():
        if not best or (found.mmlu or 0) > (best[-1].mmlu or 0):
            best.append(found)
    return tuple(reversed(best))


def smaller_slices(cut: Slice | None) -> tuple[Slice, ...]:
    """Of `frontier`, those smaller than a published one, or than the whole; none where a slice is one's own."""
    if cut is None:
        return frontier()
    names = list(PUBLISHED)
    smaller = names[: names.index(cut.name)] if PUBLISHED.get(cut.name) is cut else []
    return tuple(found for found in frontier() if found.name in smaller)
