"""Models that LiteRT would follow into a crash are refused, by what is wrong with them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from gemma_edge.runtime.formats.flatbuffer import FlatbufferError
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType, SectionKind
from gemma_edge.runtime.formats.tflite_model import OPERATORS, Operator, TensorType, check_model

Change = Callable[[Any], object]


def small() -> Any:
    """y = a + b * c, of which c is a constant."""
    codes = [schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=1) for code in (0, 18)]
    names = ("a", "b", "c", "bc", "y")
    tensors = [schema.TensorT(shape=[2, 3], type=0, buffer=0, name=name.encode(), hasRank=True) for name in names]
    tensors[2].buffer = 1
    tensors[2].quantization = schema.QuantizationParametersT(scale=[1.0, 2.0], zeroPoint=[0, 0], quantizedDimension=0)
    operators = [
        schema.OperatorT(opcodeIndex=1, inputs=[1, 2], outputs=[3], intermediates=[]),
        schema.OperatorT(opcodeIndex=0, inputs=[0, 3, -1], outputs=[4]),
    ]
    graph = schema.SubGraphT(tensors=tensors, inputs=[0, 1], outputs=[4], operators=operators, name=b"main")
    signature = schema.SignatureDefT(
        signatureKey=b"main",
        subgraphIndex=0,
        inputs=[schema.TensorMapT(name=b"a", tensorIndex=0), schema.TensorMapT(name=b"b", tensorIndex=1)],
        outputs=[schema.TensorMapT(name=b"y", tensorIndex=4)],
    )
    return schema.ModelT(
        version=3,
        operatorCodes=codes,
        subgraphs=[graph],
        buffers=[schema.BufferT(), schema.BufferT(data=np.zeros(24, np.uint8))],
        signatureDefs=[signature],
        metadata=[schema.MetadataT(name=b"m", buffer=1)],
    )


def packed(model: Any, more: int = 0) -> bytes:
    builder = flatbuffers.Builder(1 << 12)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output()) + bytes(more)


def graph(model: Any) -> Any:
    return model.subgraphs[0]


def put(part: Callable[[Any], Any], **values: Any) -> Change:
    """Sets fields of a part of a model."""

    def change(model: Any) -> None:
        for name, value in values.items():
            setattr(part(model), name, value)

    return change


def tensor(index: int) -> Callable[[Any], Any]:
    return lambda model: graph(model).tensors[index]


def operator(index: int) -> Callable[[Any], Any]:
    return lambda model: graph(model).operators[index]


def signature(model: Any) -> Any:
    return model.signatureDefs[0]


def blocks(size: int, scales: int, zeros: int = -1) -> Any:
    details = schema.BlockwiseQuantizationT(scales=scales, zeroPoints=zeros, blockSize=size)
    return schema.QuantizationParametersT(detailsType=2, details=details)


def runs(options: str, **fields: int) -> Change:
    """The first operator runs a subgraph."""
    kind = getattr(schema.BuiltinOptions, options)
    return put(operator(0), builtinOptionsType=kind, builtinOptions=getattr(schema, f"{options}T")(**fields))


def test_types_and_operators_are_the_generated_ones() -> None:
    types = {name: value for name, value in vars(schema.TensorType).items() if name.isupper()}
    assert {kind.name: kind.value for kind in TensorType} == types
    operators = {name: value for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    assert sorted(operators.values()) == list(range(OPERATORS))
    assert {operator.name: operators[operator.name] for operator in Operator} == {o.name: o.value for o in Operator}


def test_a_sound_model_passes() -> None:
    check_model(packed(small()))


CHANGES: list[tuple[Change, str]] = [
    (put(lambda m: m, version=4), "TFLite version 4, expected 3"),
    (put(lambda m: m, subgraphs=[]), "no subgraph"),
    (put(lambda m: m.buffers[1], data=None, offset=900, size=24), r"buffer 1 lies at bytes 900 to 924 of \d+"),
    (put(lambda m: m.buffers[1], data=None, offset=2**63, size=2**63), "buffer 1 lies at bytes 9223372036854775808 to"),
    (put(lambda m: m.operatorCodes[0], builtinCode=999), "operator code 0 is 999, which TFLite does not have"),
    (put(lambda m: m.metadata[0], buffer=7), "buffer of metadata 0 is 7, expected 0 to 1"),
    (put(tensor(2), shape=[2, 4]), r"tensor 2 has 24 bytes, \[2, 4\] needs 32"),
    (put(tensor(2), type=9), r"tensor 2 has 24 bytes, \[2, 3\] needs 6"),
    (put(tensor(2), type=17), r"tensor 2 has 24 bytes, \[2, 3\] needs 3"),
    (put(tensor(0), type=99), "tensor 0 has type 99, which TFLite does not have"),
    (put(tensor(0), shape=[-2, 3]), r"tensor 0 has shape \[-2, 3\]"),
    (put(tensor(0), shape=[1] * 9), r"tensor 0 has shape \[1, 1, 1, 1, 1, 1, 1, 1, 1\]"),
    (put(tensor(0), shape=[2**31 - 1] * 4), "more than 1099511627776 bytes"),
    (put(tensor(0), shapeSignature=[2]), r"tensor 0 has a shape signature of 1 for \[2, 3\]"),
    (put(tensor(0), externalBuffer=1), "tensor 0 lies in another file"),
    (put(tensor(2), buffer=9), "buffer of subgraph 0, tensor 2 is 9, expected 0 to 1"),
    (put(tensor(2), isVariable=True), "tensor 2 is a variable and has values in the file"),
    (put(lambda m: tensor(2)(m).quantization, scale=[1.0] * 5), "has 5 scales along dimension 0"),
    (put(lambda m: tensor(2)(m).quantization, quantizedDimension=3), "has 2 scales along dimension 3"),
    (put(lambda m: tensor(2)(m).quantization, zeroPoint=[0] * 7), "has 7 zero points for 2 scales"),
    (put(tensor(2), quantization=blocks(3, 77)), "scales of subgraph 0, tensor 2 is 77, expected 0 to 4"),
    (put(tensor(2), quantization=blocks(3, 0, 9)), "zero points of subgraph 0, tensor 2 is 9, expected 0 to 4"),
    (put(tensor(2), quantization=blocks(2, 0)), r"tensor 2 of \[2, 3\] has blocks of 2"),
    (put(operator(0), opcodeIndex=5), "code of subgraph 0, operator 0 is 5, expected 0 to 1"),
    (put(operator(0), inputs=[1, 66]), "an input of subgraph 0, operator 0 is 66, expected 0 to 4"),
    (put(operator(0), inputs=[1, -7]), "an input of subgraph 0, operator 0 is -7, expected 0 to 4"),
    (put(operator(0), outputs=[8]), "one of the outputs of subgraph 0, operator 0 is 8, expected 0 to 4"),
    (put(operator(0), intermediates=[5]), "one of the intermediates of subgraph 0, operator 0 is 5, expected 0 to 4"),
    (put(operator(0), outputs=[2]), "operator 0 writes tensor 2, which has values by then"),
    (put(operator(1), outputs=[0]), "operator 1 writes tensor 0, which has values by then"),
    (put(operator(0), inputs=[1, 4]), "operator 0 reads tensor 4 before anything writes it"),
    (lambda m: graph(m).operators.reverse(), "operator 0 reads tensor 3 before anything writes it"),
    (lambda m: graph(m).operators.pop(), "subgraph 0 gives tensor 4, which nothing writes"),
    (put(graph, inputs=[0, 12]), "one of the inputs of subgraph 0 is 12, expected 0 to 4"),
    (put(graph, outputs=[-1]), "one of the outputs of subgraph 0 is -1, expected 0 to 4"),
    (runs("WhileOptions", condSubgraphIndex=0, bodySubgraphIndex=4), "body_subgraph_index of .* is 4, expected 0 to 0"),
    (runs("IfOptions", thenSubgraphIndex=0, elseSubgraphIndex=0), r"subgraphs \[0\] run each other without end"),
    (runs("CallOnceOptions", initSubgraphIndex=3), "init_subgraph_index of .* is 3, expected 0 to 0"),
    (put(signature, subgraphIndex=2), "subgraph of signature 'main' is 2, expected 0 to 0"),
    (
        put(lambda m: signature(m).inputs[0], tensorIndex=3),
        "'a' of signature 'main' is tensor 3, not one of the inputs",
    ),
    (put(lambda m: signature(m).outputs[0], tensorIndex=0), "'y' of signature 'main' is tensor 0, not one of the outp"),
    (put(lambda m: signature(m).inputs[0], name=b"b"), "signature 'main' has two inputs called 'b'"),
    (put(signature, signatureKey=b"\xff"), r"the name of signature 0 is b'\\xff', which is not UTF-8"),
    (lambda m: m.signatureDefs.append(m.signatureDefs[0]), "two signatures are called 'main'"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=[reason for _, reason in CHANGES])
def test_what_does_not_hold_together(change: Change, reason: str) -> None:
    model = small()
    change(model)
    with pytest.raises(FlatbufferError, match=reason):
        check_model(packed(model))


def test_subgraphs_that_run_others_in_turn() -> None:
    model = small()
    runs("WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=1)(model)
    model.subgraphs.append(schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=b"other"))
    check_model(packed(model))


def test_bytes_behind_the_flatbuffer() -> None:
    """As every bundle has them: the place counts from the model's beginning."""
    model = small()
    put(lambda m: m.buffers[1], data=None, offset=1 << 20, size=24)(model)
    root = packed(model)
    check_model(root + bytes((1 << 20) + 24 - len(root)))
    with pytest.raises(FlatbufferError, match="buffer 1 lies at bytes 1048576 to 1048600 of 1048599"):
        check_model(root + bytes((1 << 20) + 23 - len(root)))


@cache
def sections(path: Path) -> list[bytes]:
    bundle = Bundle.open(path)
    return [bundle.read(section) for section in bundle.sections if section.kind is SectionKind.TFLITE_MODEL]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_what_is_converted_passes(family: str, precision: str, tiny_bundle: Callable[[str, str], Path]) -> None:
    path = tiny_bundle(family, precision)
    assert Bundle.open(path).find(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE)
    for content in sections(path):
        check_model(content)
