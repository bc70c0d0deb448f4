"""What the planner asks of a format. A third format is a folder with these functions, and a line in format.py."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol, cast

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.footprint import ModelSizes, Needs
from gemma_edge.converter.plan.format import Format
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.tensors import TensorSpec

DECODER = "decoder"
"""The section of the decoder; those of tables and encoders are called as their graphs."""


class Planning(Protocol):
    """A module, `litert/format.py` for one. Its other half is plan/output.py's."""

    def graphs(self, model: Model, target: Target) -> Mapping[str, Sequence[Graph]]:
        """The signatures of each section, by the section's name, DECODER among them."""

    def nbytes(self, spec: TensorSpec, storage: Storage) -> int:
        """Of values and scales in the file. Raises EncodingError where the format cannot store it so."""

    def needs(self, model: ModelSizes, target: Target) -> Needs:
        """At run time. Raises TargetError for a context that the model cannot have, RecipeError as the recipe does."""


def planning(format: Format) -> Planning:  # noqa: A002  what it is
    """Imported when it is asked for: a refusal should not wait for what it does not need."""
    return cast(Planning, import_module(f"gemma_edge.converter.{format.room}.format"))


def needs_of(model: Model, target: Target) -> Needs:
    """What a request for this model will need, in its format."""
    return planning(target.format).needs(ModelSizes.of(model), target)
