"""What a bundle or an ONNX directory will need in memory."""

from gemma_edge.runtime.executors.run_plan import RunPlan
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory


def plan_of(bundle: Bundle | OnnxDirectory) -> RunPlan:
    """Raises BundleError, OnnxDirectoryError, BundleMismatchError: its memory cannot be computed."""
    if isinstance(bundle, Bundle):
        from gemma_edge.runtime.executors.litert.footprint import BundlePlan

        return BundlePlan.of(bundle)
    from gemma_edge.runtime.executors.onnx.footprint import OnnxPlan

    return OnnxPlan.of(bundle)
