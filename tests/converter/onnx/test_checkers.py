"""What checkers of graphs say of ours: nothing, but for two operators of ONNX Runtime's own that they do not know.

- SimplifiedLayerNormalization lies in ONNX's own domain and is registered by ONNX Runtime alone, as in the models of
  onnxruntime-genai. onnx.checker knows RMSNormalization of operator set 23, which ONNX Runtime 1.20 does not read.
- FusedMatMul multiplies by weights as they are stored, [N, K]. ONNX Runtime's symbolic shape inference has no rule for
  it. As Transpose and MatMul, weights would be turned at every load, in memory of their own.
"""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from gemma_edge.converter.convert import convert


@pytest.fixture(scope="module", params=[("gemma3", "int4"), ("gemma3n", "int8"), ("gemma3n", "fp32")], ids=str)
def graphs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, tiny_gemma3n: Path
) -> list[Path]:
    family, precision = request.param
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert(f"custom-{precision}", {"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n}[family], out, format="onnx")
    return sorted(out.glob("onnx/*.onnx"))


def load(path: Path, with_weights: bool = False) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=with_weights)


def changed(graph: onnx.GraphProto, operator: str, change: Callable[[onnx.NodeProto], list[onnx.NodeProto]]) -> bool:
    """Whether there were such nodes to change."""
    nodes = [node for old in graph.node for node in (change(old) if old.op_type == operator else [old])]
    found = any(node.op_type == operator for node in graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return found


def in_a_domain_of_its_own(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    node.domain = "com.microsoft"
    return [node]


def as_two_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    assert [(attribute.name, attribute.i) for attribute in node.attribute] == [("transB", 1)]
    x, weight = node.input
    turned = f"{node.name}_turned"
    transpose = onnx.helper.make_node("Transpose", [weight], [turned], perm=[1, 0])
    return [transpose, onnx.helper.make_node("MatMul", [x, turned], node.output, name=node.name)]


def test_the_checker_objects_to_norms_alone(graphs: list[Path]) -> None:
    for path in graphs:
        model = load(path)
        if changed(model.graph, "SimplifiedLayerNormalization", in_a_domain_of_its_own):
            with pytest.raises(onnx.checker.ValidationError, match="No Op registered for SimplifiedLayerNormalization"):
                onnx.checker.check_model(path, full_check=True)
        copy = path.with_name(f"checked_{path.name}")  # beside its weights, which are looked for
        copy.write_bytes(model.SerializeToString())
        onnx.checker.check_model(copy, full_check=True)
        copy.unlink()


def test_strict_shape_inference_passes(graphs: list[Path]) -> None:
    for path in graphs:
        found = onnx.shape_inference.infer_shapes(load(path), check_type=True, strict_mode=True, data_prop=True)
        assert len(found.graph.value_info) > 0


def test_symbolic_shape_inference_lacks_a_rule_for_one_operator(graphs: list[Path]) -> None:
    for path in graphs:
        model = load(path, with_weights=True)
        if changed(model.graph, "FusedMatMul", as_two_nodes):
            with pytest.raises(Exception, match="Incomplete symbolic shape inference"):
                SymbolicShapeInference.infer_shapes(load(path, with_weights=True))
        found = SymbolicShapeInference.infer_shapes(model)
        known = {value.name for value in (*found.graph.value_info, *found.graph.output)}
        assert {name for node in model.graph.node for name in node.output if name} <= known
