"""transformers as it is on every machine: in float64 throughout, and how much of a difference float32 explains.

A model in float64 is not enough: transformers widens norms, softmax and RoPE to float32 by name, which there narrows.
And random tiny models have tokens, one in a hundred, at which float32 in any order of summation ends up to 3e-3 from
float64, each processor in a direction of its own. So a bound is a tolerance plus a few times what transformers' own
float32 is off at that token: 2e-5 at most tokens. (Worst seen: LiteRT 1.4e-3 off where transformers is 4e-4 off.)
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

ROUNDINGS = 4  # of transformers' own, that another float32 may be off


class Float64(TorchFunctionMode):  # type: ignore[misc]  # torch is not analysed
    """Within, whatever asks for float32 gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        wide = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **wide)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@dataclass(frozen=True)
class Expected:
    """logits: [T, V]. noise: [T], how far transformers in float32 is from them."""

    logits: NDArray[np.float64]
    noise: NDArray[np.float64]

    def last(self, count: int) -> "Expected":
        """Of the last tokens alone."""
        return Expected(self.logits[-count:], self.noise[-count:])

    def check(self, found: NDArray[np.float32], tolerance: float) -> None:
        """That these logits [T, V] are as close as float32 can be asked to be."""
        off = np.abs(found - self.logits).max(axis=1)
        bound = self._bound(tolerance)
        assert (off <= bound).all(), f"off by {off[off > bound]}, bounds {bound[off > bound]} of {tolerance} and noise"

    def check_greedy(self, tokens: list[int], tolerance: float) -> None:
        """That each token is the most likely one, or as good as that: logits off by the bound may exchange the two."""
        chosen = self.logits[np.arange(len(tokens)), tokens]
        assert (self.logits.max(axis=1) - chosen <= 2 * self._bound(tolerance)).all()

    def settled(self, tokens: list[int], tolerance: float, suppressed: list[int]) -> int:
        """How many of these greedy tokens any float32 gives: those before the first whose rival is within the bound."""
        rivals = self.logits.copy()
        rivals[:, suppressed] = -np.inf
        rivals[np.arange(len(tokens)), tokens] = -np.inf
        chosen = self.logits[np.arange(len(tokens)), tokens]
        doubtful = chosen - rivals.max(axis=1) < 2 * self._bound(tolerance)
        return int(doubtful.argmax()) if doubtful.any() else len(tokens)

    def _bound(self, tolerance: float) -> NDArray[np.float64]:
        return tolerance + ROUNDINGS * self.noise


class Oracle:
    """A model of transformers, which is left as it is."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._wide = deepcopy(model).double()

    def expected(self, ids: list[int], **inputs: torch.Tensor) -> Expected:
        """After each of these tokens. inputs: what else the model is given, such as images."""
        tokens = torch.tensor([ids])
        with torch.no_grad():
            narrow = self.model(input_ids=tokens, **inputs).logits[0].numpy()
            with Float64():
                wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
                logits = self._wide(input_ids=tokens, **wide).logits[0]
        assert logits.dtype is torch.float64
        exact: NDArray[np.float64] = logits.numpy()
        return Expected(exact, np.abs(narrow - exact).max(axis=1))

    def greedy(self, ids: list[int], count: int, suppressed: list[int]) -> list[int]:
        """The continuation without the suppressed tokens."""
        how = {"max_new_tokens": count, "do_sample": False, "suppress_tokens": suppressed, "eos_token_id": None}
        with Float64():
            tokens = self._wide.generate(torch.tensor([ids]), **how)
        continuation: list[int] = tokens[0, len(ids) :].tolist()
        return continuation
