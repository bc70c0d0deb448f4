"""The door to the executors: what a model's format is decides here, and nowhere after.

Onnxruntime comes with an extra, and graphs are looked into only where memory is planned: such imports stay inside.
"""

from collections.abc import Iterator
from pathlib import Path

from gemma_edge.runtime.executors.base import Decoder, SeveralModels
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.encoders import LitertEncoders
from gemma_edge.runtime.executors.litert.partitions import Partitions, partitions
from gemma_edge.runtime.executors.litert.sections import has_model, section_range
from gemma_edge.runtime.executors.litert.weight_cache import compile_section, weight_cache
from gemma_edge.runtime.executors.run_plan import RunPlan
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType
from gemma_edge.runtime.formats.model import Model
from gemma_edge.runtime.media.encoders import Encoders


def open_decoder(model: Model, threads: int, cache_dir: Path | None, *, with_drafter: bool = False) -> Decoder:
    """The decoder of a model, loaded.

    cache_dir: where packed weights are kept; None packs them into memory at every start. with_drafter: load the
    bundle's too, where it has one.

    Raises BundleError, BundleMismatchError: not a decoder that is run here. ExecutorError, WeightCacheError.
    """
    if isinstance(model, Bundle):
        return LitertDecoder(DecoderSections.of(model, with_drafter=with_drafter), threads, cache_dir)
    from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder

    return OnnxDecoder(model, threads, cache_dir)


def several_models(decoder: Decoder) -> SeveralModels | None:
    """What a decoder of more than one model can do beside; None of any other."""
    return decoder if isinstance(decoder, LitertDecoder) and decoder.models else None


def open_encoders(model: Model, vision_threads: int, audio_threads: int, cache_dir: Path | None) -> Encoders:
    """Those of a model, each loaded when it is first used."""
    if isinstance(model, Bundle):
        return LitertEncoders(model, vision_threads, audio_threads, cache_dir)
    from gemma_edge.runtime.executors.onnx.encoders import OnnxEncoders

    return OnnxEncoders(model, vision_threads, audio_threads, cache_dir)


def packed_encoders(model: Model, threads: int, cache_dir: Path | None) -> Iterator[str]:
    """Read each that a bundle has, and pack its weights where they are not yet; its name once that is done.

    Those of an ONNX directory are run as they lie. Raises BundleError, BundleMismatchError, WeightCacheError.
    """
    if not isinstance(model, Bundle):
        return
    for name, model_type in (("vision encoder", ModelType.VISION_ENCODER), ("audio encoder", ModelType.AUDIO_ENCODER)):
        if has_model(model, model_type):
            section, _ = compile_section(section_range(model, model_type), threads, cache_dir)
            section.close()
            yield name


def plan_of(model: Model) -> RunPlan:
    """What it will need in memory.

    Raises BundleError, OnnxDirectoryError, BundleMismatchError: its memory cannot be computed.
    """
    if isinstance(model, Bundle):
        from gemma_edge.runtime.executors.litert.footprint import BundlePlan

        return BundlePlan.of(model)
    from gemma_edge.runtime.executors.onnx.footprint import OnnxPlan

    return OnnxPlan.of(model)


def files_of(model: Model, threads: int, cache_dir: Path | None) -> list[Path]:
    """What a run reads: the model, and its packed weights, packed now if they are not yet. Raises WeightCacheError."""
    if isinstance(model, Bundle):
        files = [model.path]
        if cache_dir is not None:
            sections = [kind for kind in (ModelType.PREFILL_DECODE, ModelType.MTP_DRAFTER) if has_model(model, kind)]
            files += [weight_cache(section_range(model, kind), cache_dir, threads) for kind in sections]
        return files
    from gemma_edge.runtime.executors.onnx.packed import packed_graph

    files = [path for path in model.path.rglob("*") if path.is_file()]
    return files if cache_dir is None else [*files, *packed_graph(model, cache_dir, threads).parent.iterdir()]


def partitions_of(
    model: Model, model_type: ModelType, threads: int, cache_dir: Path | None
) -> dict[str, Partitions] | None:
    """How XNNPACK divides each signature of one of its graphs, packed for that; None where it does not run them."""
    if not isinstance(model, Bundle):
        return None
    section = section_range(model, model_type)
    return partitions(section, threads, None if cache_dir is None else weight_cache(section, cache_dir, threads))
