"""One loaded onnxruntime session: what a model file takes and gives, and running it."""

import logging
import math
import mmap
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue, RunOptions

from convoy.service import metadata
from convoy.service.config import EngineConfig
from convoy.service.dtypes import OF_ONNX
from convoy.service.engine.buffers import Buffer, page_lock
from convoy.service.engine.cuda_graphs import Graphs
from convoy.service.engine.providers import CUDA, GPU, Device, Options, check, preload, providers
from convoy.service.errors import BadModelFile, listed
from convoy.service.ipc.slots import MAX_RANK
from convoy.service.machine import cores
from convoy.service.metadata import Document
from convoy.service.repository import TensorSpec, is_placeholder
from convoy.service.runtime_words import reason

log = logging.getLogger(__name__)

VERSION: str = onnxruntime.__version__

_MAX_TENSORS = 64  # inputs, and outputs, of one network: what one message between processes surely carries
_DEVICE_FAULTS = ("CUDA failure", "CUDA error", "CUDNN failure", "CUBLAS failure", "cudaError")
_WARM_UP_SIDE = 64  # places of a free axis, rounded up to the model's multiple: any size does where it takes any


class DeviceLost(Exception):
    """The device failed under a run: nothing that this process computes on it can be trusted any more."""


class Session:
    """A network on its device. Not for two threads at once."""

    def __init__(self, session: onnxruntime.InferenceSession, device: int = 0, *, graphs: bool = False) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        for kind, arguments in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            if not 1 <= len(arguments) <= _MAX_TENSORS:
                raise BadModelFile(f"{len(arguments)} {kind}, want 1 to {_MAX_TENSORS}")
        self.inputs = tuple(_spec(argument) for argument in session.get_inputs())
        outputs = [argument for argument in session.get_outputs() if argument.type in OF_ONNX]
        # Such as the strings beside the scores of a classifier made from a table: they cost the scores nothing.
        odd = [argument for argument in session.get_outputs() if argument.type not in OF_ONNX]
        self.outputs = tuple(_spec(argument) for argument in outputs or odd)
        self.left_out = listed(f"output {argument.name[:64]!r} ({argument.type[:64]})" for argument in odd)
        self.document = metadata.decode(session.get_modelmeta().custom_metadata_map)
        self.batched = _batched(self.inputs, self.outputs)
        self.defaults = tuple(argument.name for argument in session.get_overridable_initializers())
        self.data: Mapping[str, bytes] = {}  # of files beside the model file: onnxruntime reads its weights there
        self.apart = ""  # why requests do not share a run, though the names of the first sides would let them
        pin = page_lock(device) if self.provider in GPU else None
        self.input_buffers = tuple(Buffer(pin) for _ in self.inputs)
        self.output_buffers = tuple(Buffer(pin) for _ in self.outputs)
        # By the shapes and dtypes of the inputs, without N: the sizes to which batches of a size are padded.
        self.padding: dict[Hashable, dict[int, int]] = {}
        self.sure = True  # that outputs have the shapes that the file tells
        self._binding = session.io_binding()
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]
        self._graphs = Graphs(session, self.inputs, self.outputs, device) if graphs else None

    def rooms(
        self, arrays: Sequence[NDArray[np.generic]], slots: Mapping[int, NDArray[np.uint8]]
    ) -> list[NDArray[np.generic] | None]:
        """Memory for the outputs of a run, as far as the file says what they will be; none at all where that gains
        nothing.

        slots  bytes that outputs, by number, may be written to, if they are as many as the output has
        """
        # On the CPU onnxruntime's arena uses memory again by itself, and hands it out without a copy.
        if not self.sure or self._graphs is not None or (self.provider not in GPU and not slots):
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
                rooms.append(buffer.array(shape, dtype) if self.provider in GPU else None)
        return rooms

    def run(
        self, arrays: Sequence[NDArray[np.generic]], rooms: Sequence[NDArray[np.generic] | None] = ()
    ) -> list[NDArray[np.generic]]:
        """The network's outputs, on the CPU, for `arrays`, one per input, contiguous.

        rooms  where the outputs go, one for each or none at all; a None is memory of its own
        Raises DeviceLost, and whatever onnxruntime raises, as where an output does not have the shape of its room.
        """
        try:
            if any(room is not None for room in rooms):
                return self._run_bound(arrays, rooms)
            if self._graphs is not None:
                return self._run_graph(self._graphs, arrays)
            return self._run(arrays)
        except Exception as error:
            if self.provider in GPU and any(fault in str(error) for fault in _DEVICE_FAULTS):
                raise DeviceLost(str(error)) from error
            raise

    def run_within(self, arrays: Sequence[NDArray[np.generic]], seconds: float) -> list[NDArray[np.generic]]:
        """As `run`, but raises where the run has not ended after `seconds`; onnxruntime looks between two nodes."""
        options = RunOptions()
        options.log_severity_level = 4  # what fails in a trial is no error of anybody's
        timer = threading.Timer(seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return self._run(arrays, options)
        except Exception as error:
            if self.provider in GPU and any(fault in str(error) for fault in _DEVICE_FAULTS):
                raise DeviceLost(str(error)) from error
            raise
        finally:
            timer.cancel()

    def run_apart(self, reason: str) -> None:
        """Requests do not share a run from now on. A network that says what it is still takes rows, one at a time."""
        self.apart = reason
        self.batched = self.batched and self.document is not None

    def join(self) -> None:
        """Requests share runs, whatever the first sides are called. Raises BadModelFile where one of them is fixed."""
        for spec in (*self.inputs, *self.outputs):
            if not spec.shape or spec.shape[0] is not None:
                raise BadModelFile(f"model.toml: batched = true, but the first side of {spec.name!r} is not free")
        self.batched = True

    def _run(self, arrays: Sequence[NDArray[np.generic]], options: RunOptions | None = None) -> list[Any]:
        return list(self._session.run(self._output_names, dict(zip(self._input_names, arrays, strict=True)), options))

    def _run_graph(self, graphs: Graphs, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        shapes = [shape for shape in _output_shapes(self.inputs, self.outputs, arrays) if shape is not None]
        outputs = graphs.run(arrays, shapes) if self.sure and len(shapes) == len(self.outputs) else None
        return self._run(arrays, graphs.without) if outputs is None else outputs

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
    """The session of a model file, as `load_on` makes it where nothing else is wanted."""
    return load_on(file, Device(provider, EngineConfig(device=device)), threads)


def load_on(file: Path, device: Device, threads: int) -> Session:
    """The session of a model file. `threads` 0 means one per core.

    A GPU never becomes the CPU in silence: raises BadModelFile where the file, its metadata or the provider do not
    hold, naming what was wanted; with provider `auto` and no GPU, a line in the log names what it would have been
    needed for.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    # Spinning would win a few microseconds a run and take the cores from the front ends.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: what matters of the rest is in BadModelFile
    preload()
    try:
        chosen = providers(device, file)
        data = _read_beside(file)
        if data:
            sizes = [len(each) for each in data.values()]
            options.add_external_initializers_from_files_in_memory(list(data), list(data.values()), sizes)
        session = onnxruntime.InferenceSession(str(file), options, providers=chosen)
    except BadModelFile:
        raise
    except Exception as error:  # onnxruntime's errors share no base class; a bad file must not end the engine
        raise BadModelFile(f"onnxruntime cannot load it: {_first_line(error, file)}") from error
    got = session.get_providers()[0]
    check(device.provider, chosen, got)
    _tell(device, chosen, got, file)
    loaded = Session(session, device.config.device, graphs=device.config.cuda_graphs and got == CUDA)
    loaded.data = data
    _check(loaded)
    _warm_up(loaded, file)
    return loaded


def _read_beside(file: Path) -> dict[str, bytes]:
    """The contents of the data files that a model file names, by name.

    onnxruntime would map them instead: whoever overwrites one in place would change the answers of what is loaded, and
    whoever shortens it would end the process.
    """
    if not file.is_file() or not file.stat().st_size:
        return {}  # onnxruntime says what is wrong with that
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as model:
        return {
            beside.name: beside.read_bytes()
            for beside in sorted(file.parent.iterdir())
            if beside != file and beside.is_file() and model.find(os.fsencode(beside.name)) >= 0
        }


def _tell(device: Device, chosen: Options, got: str, file: Path) -> None:
    if got in GPU:
        return
    name = "model {} version {}".format(*file.parts[-3:-1])
    if len(chosen) > 1:
        log.warning("%s runs on the CPU: CUDA is offered but could not be used", name)
    if device.gpu_options:
        log.warning("%s runs on the CPU, where nothing follows %s", name, ", ".join(device.gpu_options))


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


def _first_line(error: Exception, file: Path) -> str:
    # Also the folder: a message may name what lies beside the file. Nothing of the server's paths leaves it.
    text = str(error).replace(str(file), "the file").replace(str(file.parent), "its folder")
    if "escapes model directory" in text:  # onnxruntime names where a link leads
        return "a data file that it names leads outside its folder: put the data beside it, or link both files"
    return reason(RuntimeError(text)) if text.strip() else type(error).__name__


def _spec(argument: onnxruntime.NodeArg) -> TensorSpec:
    if argument.type not in OF_ONNX:
        raise BadModelFile(f"tensor {argument.name!r} is {argument.type}, want one of {', '.join(OF_ONNX)}")
    if len(argument.shape) > MAX_RANK:
        raise BadModelFile(f"tensor {argument.name!r} has rank {len(argument.shape)}, want at most {MAX_RANK}")
    shape = tuple(side if isinstance(side, int) and side >= 0 else None for side in argument.shape)
    # The first side keeps even a placeholder: that all first sides bear the same is a reason to try batches.
    names = tuple(
        side if isinstance(side, str) and (axis == 0 or not is_placeholder(side)) else ""
        for axis, side in enumerate(argument.shape)
    )
    return TensorSpec(argument.name, OF_ONNX[argument.type], shape, names)


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
    wanted = _wanted_outputs(document, session)
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


def _wanted_outputs(document: Document, session: Session) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """The dtype of each output, and the shape of its row in the first run."""
    match document.task:
        case "classification":
            return {metadata.PROBABILITIES: ("float32", (len(document.labels),))}
        case "segmentation":
            height, width, _ = input_shape(document)
            # A network that ends in an argmax has no confidence to tell.
            sure = [spec.name for spec in session.outputs if spec.name == metadata.CONFIDENCE]
            return dict.fromkeys([metadata.MASK, *sure], ("uint8", (height, width)))
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
    for name, (_, row) in _wanted_outputs(document, session).items():
        if outputs[name].shape != (2, *row):
            came = list(outputs[name].shape)
            raise BadModelFile(f"output {name!r} came as {came}, the document wants {[2, *row]}")
