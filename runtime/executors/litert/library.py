"""libLiteRt.so of the ai-edge-litert wheel by ctypes: a model section run where it lies, over memory that we own.

The wheel's Python API can neither open a section inside a bundle (it wants a file of its own: 1.5 GB copied) nor
release the GIL during a run. The C API does both. Its structs are declared stable by the headers
(litert/c/litert_model_types.h, litert_layout.h, litert_environment_options.h) and their sizes are asserted here;
the functions are not versioned, so the wheel's version is checked before the library is trusted.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import math
import mmap
import os
import re
import sys
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import BundleMismatchError, ExecutorError
from gemma_edge.runtime.formats.file_range import FileRange

SUPPORTED_VERSION = "2.3.0"
ALIGNMENT_BYTES = 64  # LITERT_HOST_MEMORY_BUFFER_ALIGNMENT

_CPU = 1  # kLiteRtHwAcceleratorCpu
_ANY_INT = 2  # kLiteRtAnyTypeInt
_OPTION_AUTO_REGISTER_ACCELERATORS = 24
_OPTION_MIN_LOG_SEVERITY = 25
# QS8 and QU8, which are LiteRT's default, and DYNAMIC_FULLY_CONNECTED, which attention over a long cache needs.
_XNNPACK_FLAGS = 1 | 2 | 8
_TRACED = re.compile(r"\s*(?P<name>\S.*?)\s+(?:[\d.]+%?\s+)+\[(?P<by>Builtin|Delegate)\]:\d+$")
_LOG_ERROR = 3
# LiteRtElementType -> numpy
_DTYPES = {1: np.float32, 2: np.int32, 3: np.uint8, 6: np.bool_, 9: np.int8, 10: np.float16}

_Handle = ctypes.c_void_p
_Size = ctypes.c_size_t


class _Layout(ctypes.Structure):
    _fields_ = (("rank_bits", ctypes.c_uint32), ("dims", ctypes.c_int32 * 8), ("strides", ctypes.c_uint32 * 8))


class _RankedTensorType(ctypes.Structure):
    _fields_ = (("element_type", ctypes.c_int), ("layout", _Layout))


class _Any(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("int_value", ctypes.c_int64))


class _EnvironmentOption(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_int), ("value", _Any))


assert ctypes.sizeof(_RankedTensorType) == 72
assert ctypes.sizeof(_EnvironmentOption) == 24

# The options blob is ours (kept alive by the model), so there is nothing for LiteRT to free.
_KEEP_PAYLOAD = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)


@dataclass(frozen=True)
class TensorType:
    """Shape and dtype of one input or output."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name, in the order the model wants them."""

    index: int
    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]


def aligned_zeros(tensor: TensorType) -> NDArray[Any]:
    """A zeroed array at an address that LiteRT takes without a copy.

    Large arrays are private anonymous mappings: pages cost memory when first written, and are given back when the
    array dies.
    """
    padded_bytes = -(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    memory: Any
    if padded_bytes >= mmap.PAGESIZE:
        try:
            memory = mmap.mmap(-1, padded_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise ExecutorError(
                f"no memory for a tensor of {padded_bytes} bytes ({error.strerror}); close other programs, lower "
                "max_num_tokens or convert with a shorter context"
            ) from error
        start = 0
    else:
        memory = np.zeros(padded_bytes + ALIGNMENT_BYTES, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT_BYTES
    return np.frombuffer(memory, np.uint8, tensor.nbytes, start).view(tensor.dtype).reshape(tensor.shape)


def litert_version() -> str:
    """The installed ai-edge-litert.

    Raises:
        ExecutorError: it is not installed, or its C API is not known to be the one used here.
    """
    install = f"pip install ai-edge-litert=={SUPPORTED_VERSION}"
    try:
        version = importlib.metadata.version("ai-edge-litert")
    except importlib.metadata.PackageNotFoundError:
        raise ExecutorError(f"ai-edge-litert is not installed; {install}") from None
    if version != SUPPORTED_VERSION:
        raise ExecutorError(f"ai-edge-litert {version} is installed, expected {SUPPORTED_VERSION}; {install}")
    return version


class LibLiteRt:
    """The loaded library with one environment. Whoever makes it closes it."""

    def __init__(self) -> None:
        litert_version()
        spec = importlib.util.find_spec("ai_edge_litert")
        assert spec is not None
        assert spec.origin is not None
        suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
        self._lib = ctypes.CDLL(str(Path(spec.origin).with_name(f"libLiteRt.{suffix}")))
        options = (_EnvironmentOption * 2)(
            _EnvironmentOption(_OPTION_AUTO_REGISTER_ACCELERATORS, _Any(_ANY_INT, _CPU)),
            _EnvironmentOption(_OPTION_MIN_LOG_SEVERITY, _Any(_ANY_INT, _LOG_ERROR)),
        )
        self.environment = _Handle()
        self.call("LiteRtCreateEnvironment", 2, options, ctypes.byref(self.environment))

    def call(self, function: str, *args: Any) -> None:
        """Call a function that returns a LiteRtStatus."""
        status = getattr(self._lib, function)(*args)
        if status:
            raise ExecutorError(f"{function} failed with LiteRT status {status}; see the log lines above for the cause")

    def get(self, function: str, *args: Any, result: Any = _Handle) -> Any:
        """Call a function whose last argument receives its result."""
        out = result()
        self.call(function, *args, ctypes.byref(out))
        return out

    def destroy(self, function: str, handle: Any) -> None:
        """Call a destructor (they return nothing)."""
        destructor = getattr(self._lib, function)
        destructor.restype = None
        destructor(handle)

    def close(self) -> None:
        if self.environment:
            self.destroy("LiteRtDestroyEnvironment", self.environment)
            self.environment = _Handle()


class CompiledSection:
    """One TFLite model, compiled for the CPU from a section of a file. profiling: `trace` can be asked.

    All that is native goes with `close`, or with the last reference.
    """

    def __init__(self, section: FileRange, threads: int, weight_cache: Path | None, *, profiling: bool = False) -> None:
        self._lib = LibLiteRt()
        self._bound: weakref.WeakSet[BoundSignature] = weakref.WeakSet()
        self._payloads: list[Any] = []  # LiteRT keeps pointers to them
        natives = ExitStack()  # released in the reverse order of their making
        natives.callback(self._lib.close)
        self._release = weakref.finalize(self, _close, natives, self._payloads)
        try:
            self._model = self._owned(natives, "Model", self._open(section))
            self._options = self._owned(natives, "Options", self._compile_options(threads, weight_cache, profiling))
            compiled = self._lib.get("LiteRtCreateCompiledModel", self._lib.environment, self._model, self._options)
            self._compiled = self._owned(natives, "CompiledModel", compiled)
            self.signatures = self._read_signatures()
        except BaseException:
            self.close()
            raise

    def _owned(self, natives: ExitStack, kind: str, handle: Any) -> Any:
        natives.callback(self._lib.destroy, f"LiteRtDestroy{kind}", handle)
        return handle

    def _open(self, section: FileRange) -> Any:
        descriptor = os.open(section.path, os.O_RDONLY)
        try:  # LiteRT duplicates the descriptor
            return self._lib.get(
                "LiteRtCreateModelFromFd",
                self._lib.environment,
                ctypes.c_int(descriptor),
                _Size(section.offset),
                _Size(section.nbytes),
            )
        except ExecutorError as error:
            raise BundleMismatchError(
                f"{section.path}: the section at {section.offset} is not a TFLite model this runtime reads "
                f"({error}); convert the checkpoint again"
            ) from error
        finally:
            os.close(descriptor)

    def _compile_options(self, threads: int, weight_cache: Path | None, profiling: bool) -> Any:
        # Payloads are TOML (litert/c/options/litert_{cpu,runtime}_options.cc), read when the model is compiled.
        cpu = f"num_threads = {threads}\nflags = {_XNNPACK_FLAGS}\n"
        if weight_cache is not None:
            quoted = json.dumps(str(weight_cache), ensure_ascii=False)  # TOML escapes as JSON does
            cpu += f"weight_cache_file_path = {quoted}\n"
        options = self._lib.get("LiteRtCreateOptions")
        self._lib.call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        payloads = {b"xnnpack": cpu} | ({b"runtime_options_string": "enable_profiling = true\n"} if profiling else {})
        for name, toml in payloads.items():
            payload = ctypes.create_string_buffer(toml.encode())
            self._payloads.append(payload)
            opaque = self._lib.get("LiteRtCreateOpaqueOptions", name, ctypes.cast(payload, _Handle), _KEEP_PAYLOAD)
            self._lib.call("LiteRtAddOpaqueOptions", options, opaque)
        return options

    def _read_signatures(self) -> dict[str, Signature]:
        get = self._lib.get
        signatures = {}
        for index in range(get("LiteRtGetNumModelSignatures", self._model, result=_Size).value):
            handle = get("LiteRtGetModelSignature", self._model, _Size(index))
            key = get("LiteRtGetSignatureKey", handle, result=ctypes.c_char_p).value.decode()
            signatures[key] = Signature(
                index, self._read_tensors(handle, "Input"), self._read_tensors(handle, "Output")
            )
        return signatures

    def _read_tensors(self, signature: Any, direction: str) -> dict[str, TensorType]:
        get = self._lib.get
        tensors = {}
        for index in range(get(f"LiteRtGetNumSignature{direction}s", signature, result=_Size).value):
            position = _Size(index)
            name = get(f"LiteRtGetSignature{direction}Name", signature, position, result=ctypes.c_char_p).value.decode()
            tensor = get(f"LiteRtGetSignature{direction}TensorByIndex", signature, position)
            tensors[name] = _tensor_type(get("LiteRtGetRankedTensorType", tensor, result=_RankedTensorType), name)
        return tensors

    def bind(
        self, name: str, arrays: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]] | None = None
    ) -> "BoundSignature":
        """Fix the memory of a signature's inputs and outputs.

        A name that is both is read and written in place, unless its output has an array of its own.
        """
        signature = self.signatures[name]
        results = arrays if outputs is None else outputs
        bound = BoundSignature(self, self._lib, self._compiled, signature, arrays, results)
        self._bound.add(bound)
        return bound

    def trace(self, run: "BoundSignature") -> list[tuple[str, bool]]:
        """Run once and return what ran, in order: the op's name and whether XNNPACK ran it. Needs `profiling`."""
        profiler = self._lib.get("LiteRtCompiledModelGetProfiler", self._compiled)
        self._lib.call("LiteRtStartProfiler", profiler)
        run()
        self._lib.call("LiteRtStopProfiler", profiler)
        summary = self._lib.get("LiteRtGetProfileSummary", profiler, self._compiled, result=ctypes.c_char_p)
        _, _, text = summary.value.decode().partition("Run Order")
        in_order, _, _ = text.partition("Top by Computation Time")
        found = (_TRACED.match(line) for line in in_order.splitlines())
        return [(line["name"], line["by"] == "Delegate") for line in found if line]

    def close(self) -> None:
        """Release everything, what was bound first. Closing twice is fine."""
        for bound in list(self._bound):
            bound.close()
        self._release()


class BoundSignature:
    """A signature with its memory fixed: calling it runs the model. Made by `CompiledSection.bind`."""

    def __init__(
        self,
        section: CompiledSection,
        lib: LibLiteRt,
        compiled: Any,
        signature: Signature,
        arrays: Mapping[str, NDArray[Any]],
        results: Mapping[str, NDArray[Any]],
    ) -> None:
        self._section = section  # has to outlive the buffers
        self._lib = lib
        buffers = ExitStack()
        self._release = weakref.finalize(self, _close, buffers, (arrays, results))
        read = {key: _wrap(lib, buffers, arrays[key], tensor) for key, tensor in signature.inputs.items()}
        written = {
            key: read[key] if key in read and results[key] is arrays[key] else _wrap(lib, buffers, results[key], tensor)
            for key, tensor in signature.outputs.items()
        }
        self._args = (
            compiled,
            _Size(signature.index),
            _Size(len(read)),
            (_Handle * len(read))(*read.values()),
            _Size(len(written)),
            (_Handle * len(written))(*written.values()),
        )

    @property
    def is_closed(self) -> bool:
        """Whether its memory, or the model, was released."""
        return not self._release.alive

    def __call__(self) -> None:
        self._lib.call("LiteRtRunCompiledModel", *self._args)

    def close(self) -> None:
        """Release the buffers, not the arrays under them; it cannot be called any more. Closing twice is fine."""
        self._release()


def _close(natives: ExitStack, _kept: Any) -> None:
    """A finalizer's work; what natives point to is kept until they are gone."""
    natives.close()


def _wrap(lib: LibLiteRt, buffers: ExitStack, array: NDArray[Any], tensor: TensorType) -> Any:
    """A tensor buffer over an array from `aligned_zeros`. The caller keeps the array alive."""
    native = _RankedTensorType(next(key for key, value in _DTYPES.items() if value == tensor.dtype))
    native.layout.rank_bits = len(tensor.shape)
    native.layout.dims[: len(tensor.shape)] = tensor.shape
    buffer = lib.get(
        "LiteRtCreateTensorBufferFromHostMemory",
        ctypes.byref(native),
        _Handle(array.ctypes.data),
        _Size(tensor.nbytes),
        None,
    )
    buffers.callback(lib.destroy, "LiteRtDestroyTensorBuffer", buffer)
    return buffer


def _tensor_type(native: _RankedTensorType, name: str) -> TensorType:
    if native.element_type not in _DTYPES:
        raise BundleMismatchError(
            f"tensor {name} has LiteRT element type {native.element_type}; this executor takes {sorted(_DTYPES)}"
        )
    rank = native.layout.rank_bits & 0x7F  # the top bit says whether strides follow
    return TensorType(tuple(native.layout.dims[:rank]), np.dtype(_DTYPES[native.element_type]))
