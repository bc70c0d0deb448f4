"""The documents' optimisation levels, as what is decided here: a precision when converting, a profile when running."""

from dataclasses import dataclass

from gemma_edge.runtime.services.errors import known

MODELS = ("e4b", "e2b", "1b", "custom")


@dataclass(frozen=True)
class Level:
    """A preset. precision: of `convert --target MODEL-PRECISION`. profile: the device whose budget is kept."""

    name: str
    precision: str
    profile: str
    description: str

    def target(self, model: str) -> str:
        """What `convert` and `plan` take as --target. Raises ServiceError: another model."""
        return f"{known('model', model, MODELS)}-{self.precision}"

    def convert_options(self, model: str) -> list[str]:
        """The options of `convert` that this level stands for."""
        return ["--target", self.target(model), "--profile", self.profile]


_PRESETS = (
    Level("maximum_efficiency", "int4", "phone-2gb", "4 bits: the smallest and, on a CPU, the fastest"),
    Level("balanced", "int8", "raspberry-pi-5-4gb", "8 bits: hardly any loss, twice the bytes to read for a token"),
    Level("performance", "fp16", "raspberry-pi-5-8gb", "16 bits, as the checkpoint: the best text, and the slowest"),
)
LEVELS = {level.name: level for level in _PRESETS}
"""By name. E2B fits each of the profiles, at 4096 tokens."""


def optimization_level(name: str = "balanced") -> Level:
    """The preset of that name. Raises ServiceError that lists them."""
    return LEVELS[known("optimization level", name, LEVELS)]
