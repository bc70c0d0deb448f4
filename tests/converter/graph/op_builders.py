"""One small expression for each op of a graph, for every emitter: a and b are [1, 6, 4, 8], "w" is a vector [8]."""

from collections.abc import Callable, Mapping

from gemma_edge.converter.graph import audio as graph_audio
from gemma_edge.converter.graph.ops import Graph, Value

SHAPE = (1, 6, 4, 8)

BUILDERS: Mapping[str, Callable[[Graph, Value, Value], Value]] = {
    "add": lambda g, a, b: g.add(a, b),
    "sub": lambda g, a, b: g.sub(a, b),
    "mul": lambda g, a, b: g.mul(a, b),
    "div": lambda g, a, b: g.div(a, b),
    "maximum": lambda g, a, b: g.maximum(a, b),
    "number first": lambda g, a, b: g.mul(g.sub(1.5, a), b),
    "number last": lambda g, a, b: g.maximum(g.sub(a, b), 0.25),
    "weight vector": lambda g, a, b: g.add(g.mul(a, g.weight("w")), b),
    "broadcast": lambda g, a, b: g.mul(a, g.mean(b)),
    "tanh": lambda g, a, b: g.tanh(g.mul(a, b)),
    "gelu": lambda g, a, b: g.gelu(g.mul(a, b)),
    "relu": lambda g, a, b: g.relu(g.sub(a, b)),
    "sigmoid": lambda g, a, b: g.sigmoid(g.mul(a, b)),
    "sqrt": lambda g, a, b: g.sqrt(g.mul(g.mul(a, a), g.mul(b, b))),
    "static range": lambda g, a, b: g.static_range(g.mul(g.add(a, b), 40.0), 0.75),  # some are beyond its ends
    "static ranges in a row": lambda g, a, b: g.mul(a, g.static_range(g.static_range(b, 0.25), 0.5)),
    "mean": lambda g, a, b: g.mean(g.sub(a, b)),
    "rms_norm": lambda g, a, b: g.rms_norm(g.sub(a, b), None, 1e-6),
    "rms_norm with a weight and a large epsilon": lambda g, a, b: g.rms_norm(g.sub(a, b), "w", 0.5),
    "reshape": lambda g, a, b: g.reshape(g.add(a, b), (2, 3, 4, 8)),
    "slice": lambda g, a, b: g.slice(g.add(a, b), 2, 1, 2),
    "slice the last axis": lambda g, a, b: g.slice(g.add(a, b), 3, 3, 5),
    "last token": lambda g, a, b: g.last_token(g.add(a, b)),
    "concat": lambda g, a, b: g.concat([a, b, a], 2),
    "concat the last axis": lambda g, a, b: g.concat([a, g.mean(b), b], -1),
    "matmul": lambda g, a, b: g.matmul(a, g.reshape(b, (1, 6, 8, 4))),
    "every third": lambda g, a, b: graph_audio.every_nth(g, g.add(a, b), 3),
    "pad rows": lambda g, a, b: graph_audio.pad_rows(g, g.add(a, b), 11),
    "cumulative norm": lambda g, a, b: graph_audio.cumulative_norm(g, g.add(a, b), "w", 1e-3),
    "weight as a value": lambda g, a, b: g.mul(g.add(a, b), g.reshape(g.weight("w"), (1, 1, 1, 8))),
}
