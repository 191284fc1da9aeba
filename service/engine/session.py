"""One loaded onnxruntime session: what a model file takes and gives, and running it."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from service import metadata
from service.engine.buffers import Buffer, page_lock
from service.errors import BadModelFile
from service.metadata import Document
from service.repository import TensorSpec
from service.slots import DTYPES, MAX_RANK

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
VERSION: str = onnxruntime.__version__

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}
assert {np.dtype(name) for name in _DTYPES.values()} == set(DTYPES)

_MAX_TENSORS = 64  # inputs, and outputs, of one network: what one message between processes surely carries
_DEVICE_FAULTS = ("CUDA failure", "CUDA error", "CUDNN failure", "CUBLAS failure", "cudaError")
_WARM_UP_SIDE = 64  # places of a free axis, rounded up to the model's multiple: any size does where it takes any


class DeviceLost(Exception):
    """The device failed under a run: nothing that this process computes on it can be trusted any more."""


class Session:
    """A network on its device. Not for two threads at once."""

    def __init__(self, session: onnxruntime.InferenceSession, device: int = 0, *, fell_back: bool = False) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        self.fell_back = fell_back  # CUDA was tried and is not what it runs on
        for kind, arguments in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            if not 1 <= len(arguments) <= _MAX_TENSORS:
                raise BadModelFile(f"{len(arguments)} {kind}, want 1 to {_MAX_TENSORS}")
        self.inputs = tuple(_spec(argument) for argument in session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in session.get_outputs())
        self.document = metadata.decode(session.get_modelmeta().custom_metadata_map)
        self.batched = _batched(self.inputs, self.outputs)
        pin = page_lock(device) if self.provider == CUDA else None
        self.input_buffers = tuple(Buffer(pin) for _ in self.inputs)
        self.output_buffers = tuple(Buffer(pin) for _ in self.outputs)
        self.sure = True  # that outputs have the shapes that the file tells
        self._binding = session.io_binding()
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]

    def rooms(
        self, arrays: Sequence[NDArray[np.generic]], slots: Mapping[int, NDArray[np.uint8]]
    ) -> list[NDArray[np.generic] | None]:
        """Memory for the outputs of a run, as far as the file says what they will be; none at all where that gains
        nothing.

        slots  bytes that outputs, by number, may be written to, if they are as many as the output has
        """
        # On the CPU onnxruntime's arena uses memory again by itself, and hands it out without a copy.
        if not self.sure or (self.provider == CPU and not slots):
            return []
        rooms: list[NDArray[np.generic] | None] = []
        shapes = _output_shapes(self.inputs, self.outputs, arrays)
        for number, (spec, shape, buffer) in enumerate(zip(self.outputs, shapes, self.output_buffers, strict=True)):
            dtype = np.dtype(spec.dtype)
            slot = slots.get(number)
            if shape is None:
                rooms.append(None)
            elif slot is not None and slot.nbytes == dtype.itemsize * math.prod(shape):
                rooms.append(slot.view(dtype).reshape(shape))
            else:
                rooms.append(None if self.provider == CPU else buffer.array(shape, dtype))
        return rooms

    def run(
        self, arrays: Sequence[NDArray[np.generic]], rooms: Sequence[NDArray[np.generic] | None] = ()
    ) -> list[NDArray[np.generic]]:
        """The network's outputs, on the CPU, for `arrays`, one per input, contiguous.

        rooms  where the outputs go, one for each or none at all; a None is memory of its own
        Raises DeviceLost, and whatever onnxruntime raises, as where an output does not have the shape of its room.
        """
        try:
            if not any(room is not None for room in rooms):
                return list(self._session.run(self._output_names, dict(zip(self._input_names, arrays, strict=True))))
            return self._run_bound(arrays, rooms)
        except Exception as error:
            if self.provider == CUDA and any(fault in str(error) for fault in _DEVICE_FAULTS):
                raise DeviceLost(str(error)) from error
            raise

    def _run_bound(
        self, arrays: Sequence[NDArray[np.generic]], rooms: Sequence[NDArray[np.generic] | None]
    ) -> list[NDArray[np.generic]]:
        binding = self._binding
        try:
            for name, values in zip(self._input_names, arrays, strict=True):
                binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(values))
            for name, room in zip(self._output_names, rooms, strict=True):
                # Outputs end on the CPU whatever the provider: onnxruntime copies from the device as part of the run.
                if room is None:
                    binding.bind_output(name, "cpu")
                else:
                    binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(room))
            self._session.run_with_iobinding(binding)
            outputs = binding.get_outputs()
            return [value.numpy() if room is None else room for value, room in zip(outputs, rooms, strict=True)]
        finally:
            # A binding that is kept must not keep what was bound: a front end's memory may go.
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()


def load(file: Path, provider: str, device: int, threads: int) -> Session:
    """The session of a model file on `provider` (auto, cpu, cuda). `threads` 0 means one per core.

    `cuda` never becomes the CPU in silence: raises BadModelFile where the file, its metadata or the provider do not
    hold, naming what was wanted.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    # Spinning would win a few microseconds a run and take the cores from the front ends.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: what matters of the rest is in BadModelFile
    _preload()
    try:
        providers = _providers(provider, device)
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class; a bad file must not end the engine
        raise BadModelFile(f"onnxruntime cannot load it: {_first_line(error, file)}") from error
    if provider == "cuda" and session.get_providers()[0] != CUDA:
        raise BadModelFile(_why_no_cuda())
    loaded = Session(session, device, fell_back=len(providers) > 1 and session.get_providers()[0] != CUDA)
    _check(loaded)
    _warm_up(loaded, file)
    return loaded


def input_shape(document: Document) -> tuple[int, ...]:
    """The shape, without N, of an input that the network surely takes."""
    if document.tensor is not None:
        return tuple(axis.size or _WARM_UP_SIDE for axis in document.tensor.axes)
    spec = document.image
    if spec.height is not None and spec.width is not None:
        return spec.height, spec.width, spec.channels
    height, width = (
        -(-max(_WARM_UP_SIDE, least) // spec.multiple) * spec.multiple for least in (spec.min_height, spec.min_width)
    )
    return height, width, spec.channels


@cache
def _preload() -> None:
    """Load CUDA and cuDNN from their Python packages, where those are installed; what is missing is told once."""
    if CUDA in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()


def _providers(provider: str, device: int) -> list[str | tuple[str, dict[str, str]]]:
    cuda = (
        CUDA,
        {"device_id": str(device), "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"},
    )
    if provider == "cpu" or CUDA not in onnxruntime.get_available_providers():
        return [CPU]
    return [cuda, CPU]


def _why_no_cuda() -> str:
    offered = ", ".join(onnxruntime.get_available_providers())
    if CUDA not in onnxruntime.get_available_providers():
        return f"provider cuda was asked for, but this onnxruntime offers only {offered}: install onnxruntime-gpu"
    return "provider cuda was asked for, but no CUDA device could be used: see the log, or set engine.provider=cpu"


def _first_line(error: Exception, file: Path) -> str:
    # Also the folder: a message may name what lies beside the file. Nothing of the server's paths leaves it.
    text = str(error).replace(str(file), "the file").replace(str(file.parent), "its folder").strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _spec(argument: onnxruntime.NodeArg) -> TensorSpec:
    if argument.type not in _DTYPES:
        raise BadModelFile(f"tensor {argument.name!r} is {argument.type}, want one of {', '.join(_DTYPES)}")
    if len(argument.shape) > MAX_RANK:
        raise BadModelFile(f"tensor {argument.name!r} has rank {len(argument.shape)}, want at most {MAX_RANK}")
    shape = tuple(side if isinstance(side, int) else None for side in argument.shape)
    names = tuple(side if isinstance(side, str) else "" for side in argument.shape)
    return TensorSpec(argument.name, _DTYPES[argument.type], shape, names)


def _batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    # Requests may ride side by side only where the file itself says that the first side is one and the same
    # free dimension everywhere.
    first = {(spec.names[0] if spec.names else "") for spec in (*inputs, *outputs)}
    return len(first) == 1 and first != {""}


def _output_shapes(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], arrays: Sequence[NDArray[np.generic]]
) -> list[tuple[int, ...] | None]:
    """What the outputs for these inputs should be by what the file says; None where it does not say."""
    sides: dict[str, int] = {}
    for spec, values in zip(inputs, arrays, strict=True):
        sides.update(zip(spec.names, values.shape, strict=False))  # a file may leave the rank open
    sides.pop("", None)
    found: list[tuple[int, ...] | None] = []
    for spec in outputs:
        free = zip(spec.shape, spec.names, strict=True)
        shape = [sides.get(name) if side is None else side for side, name in free]
        found.append(None if None in shape else tuple(side for side in shape if side is not None))
    return found


def _check(session: Session) -> None:
    """The tensors are what the document says. Raises BadModelFile."""
    document = session.document
    if document is None:
        return
    wanted = _wanted_outputs(document)
    names = {spec.name: spec for spec in session.outputs}
    taken, given = document.takes, session.inputs[0]
    sides = [None, *(axis.size for axis in taken.axes)]
    if len(session.inputs) != 1 or (given.name, given.dtype) != (taken.name, taken.dtype):
        inputs = [f"{spec.dtype} {spec.name!r}" for spec in session.inputs]
        raise BadModelFile(f"inputs are {', '.join(inputs)}, want one {taken.dtype} tensor {taken.name!r}")
    if len(given.shape) != len(sides) or any(
        want not in (None, got) for want, got in zip(sides[1:], given.shape[1:], strict=True)
    ):
        raise BadModelFile(f"input {given.name!r} has shape {list(given.shape)}, the document wants {sides}")
    if not session.batched:
        raise BadModelFile("the first dimension of every tensor must be free and have one name")
    for name, (dtype, _) in wanted.items():
        if name not in names or names[name].dtype != dtype:
            raise BadModelFile(f"outputs are {sorted(names)}, a {document.task} document wants {name!r} as {dtype}")


def _wanted_outputs(document: Document) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """The dtype of each output, and the shape of its row in the first run."""
    match document.task:
        case "classification":
            return {metadata.PROBABILITIES: ("float32", (len(document.labels),))}
        case "segmentation":
            height, width, _ = input_shape(document)
            return {metadata.MASK: ("uint8", (height, width)), metadata.CONFIDENCE: ("uint8", (height, width))}
        case "matching":
            height, width, _ = input_shape(document)
            places = (height - document.image.min_height + 1, width - document.image.min_width + 1)
            return {
                metadata.HEAT_MAP: ("float32", places),
                metadata.LOCATION: ("int64", (2,)),
                metadata.SCORE: ("float32", ()),
            }


def _warm_up(session: Session, file: Path) -> None:
    """One run before the model is ready: no caller meets the first-run stall, and the answer's shape is checked."""
    document = session.document
    if document is None:
        return
    values = np.zeros((2, *input_shape(document)), document.takes.dtype)
    try:
        outputs = dict(zip((spec.name for spec in session.outputs), session.run([values]), strict=True))
    except Exception as error:  # as in load: whatever it is, this version does not serve
        raise BadModelFile(f"the first run failed: {_first_line(error, file)}") from error
    for name, (_, row) in _wanted_outputs(document).items():
        if outputs[name].shape != (2, *row):
            came = list(outputs[name].shape)
            raise BadModelFile(f"output {name!r} came as {came}, the document wants {[2, *row]}")
