"""Tables that a graph looks rows up in: which nodes read them, and how many bits a value has there.

Integers are looked up as bytes; of less than 8 bits, each byte is then looked up as the values that it holds, float32
[256, 8 / bits]. That is Gather and plain arithmetic, which every device of transformers.js runs. GatherBlockQuantized,
one node for all of it, has no kernel in its builds for browsers; gemma-edge wrote it once, and reads it still.
"""

from collections.abc import Iterator

import onnx_ir as ir


def table_look_ups(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes that read a table beside the graph, tables of scales included."""
    for node in graph:
        is_look_up = node.op_type in ("Gather", "GatherBlockQuantized")
        if is_look_up and node.inputs[0] is not None and isinstance(node.inputs[0].const_value, ir.ExternalTensor):
            yield node


def table_bits(look_up: ir.Node) -> int:
    """Bits of one value in the table that a node reads; 0 where values are floats."""
    if look_up.op_type == "GatherBlockQuantized":
        return look_up.attributes["bits"].as_int()
    table = look_up.inputs[0]
    if table is None or table.dtype != ir.DataType.UINT8:
        return 0
    for cast in look_up.outputs[0].consumers():
        for node in cast.outputs[0].consumers():
            if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].const_value is not None:
                return 8 // int(node.inputs[0].const_value.shape.numpy()[1])
    return 8


def scales_of(look_up: ir.Node, graph: ir.Graph) -> ir.Value | None:
    """float32 [rows, blocks] of a table of integers, which bear its name. None where there are none in a data file."""
    table = look_up.inputs[0]
    scales = None if table is None else graph.initializers.get(f"{table.name}.scale")
    return scales if scales is not None and isinstance(scales.const_value, ir.ExternalTensor) else None
