"""The weights of norms, tuned so that what a norm gives in the rounded model is closest to what it gives in the exact.

They are stored in full, so that this costs no byte: noise before a norm makes what it gives larger than what is left of
the signal, channel by channel (arXiv 2309.02784 tunes them by gradients; each has a closed form here).
"""

from collections import Counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter import graph as ir

Float32 = NDArray[np.float32]

_RIDGE: Final = np.float32(0.003)
"""Of a channel's mean square, by which its gain is held to 1."""
_SMALLEST, _LARGEST = np.float32(0.25), np.float32(2)


def tunable_norms(graph: ir.Graph) -> dict[ir.Value, str]:
    """The names of weights that belong to one norm alone, by what this norm gives."""
    norms = {op.out: op.weight.name for op in graph.ops if isinstance(op, ir.RmsNorm) and op.weight is not None}
    uses = Counter(norms.values())
    return {value: name for value, name in norms.items() if uses[name] == 1}


def gains(exact: Float32, found: Float32) -> Float32:
    """What to multiply `found` by, [d], to be closest to `exact`, both [..., d], in the sum of squares."""
    e, f = exact.reshape(-1, exact.shape[-1]), found.reshape(-1, found.shape[-1])
    both, own = np.einsum("nd,nd->d", e, f), np.einsum("nd,nd->d", f, f)
    ridge = _RIDGE * own + np.float32(1e-30)
    gain: Float32 = np.clip((both + ridge) / (own + ridge), _SMALLEST, _LARGEST)
    return gain
