"""One loaded onnxruntime session: its inputs and outputs, and running it."""

import hashlib
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

from convoy.service import declared, golden, metadata
from convoy.service.config import EngineConfig
from convoy.service.dtypes import OF_ONNX
from convoy.service.engine.buffers import Buffer, page_lock
from convoy.service.engine.cuda_graphs import Graphs
from convoy.service.engine.footprint import Footprint
from convoy.service.engine.poison import Poison
from convoy.service.engine.providers import (
    CPU,
    CUDA,
    GPU,
    Device,
    Options,
    check,
    nodes,
    preload,
    providers,
    record_nodes,
)
from convoy.service.errors import BadModelFile, listed, named, runtime_reason
from convoy.service.ipc.slots import MAX_RANK
from convoy.service.machine import cores
from convoy.service.metadata import MOST_OF_A_NAME, input_shape
from convoy.service.repository import TensorSpec, is_placeholder

log = logging.getLogger(__name__)

VERSION: str = onnxruntime.__version__

WRONG_EXAMPLE = "the file's own example gets another answer"  # how a message begins

_PIECE = 1 << 20
_SEED = 1  # of the pixels of the first run
_MAX_TENSORS = 64  # inputs, or outputs, of one network: as many as one message between processes can carry
_DEVICE_FAULTS = ("CUDA failure", "CUDA error", "CUDNN failure", "CUBLAS failure", "cudaError")


class Unwritten(Exception):
    """A run has ended without error and has not written an output."""


class DeviceLost(Exception):
    """The device failed during a run: further results of this process on it cannot be trusted."""


class Session:
    """A network on its device. Not thread-safe."""

    def __init__(self, session: onnxruntime.InferenceSession, device: int = 0, *, graphs: bool = False) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        for kind, arguments in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            if not 1 <= len(arguments) <= _MAX_TENSORS:
                raise BadModelFile(f"{len(arguments)} {kind}, want 1 to {_MAX_TENSORS}")
        self.inputs = tuple(_spec(argument) for argument in session.get_inputs())
        outputs = [argument for argument in session.get_outputs() if argument.type in OF_ONNX]
        # Such as the strings beside the scores of a classifier for tabular data: the scores can still be served.
        odd = [argument for argument in session.get_outputs() if argument.type not in OF_ONNX]
        self.outputs = tuple(_spec(argument) for argument in outputs or odd)
        self.left_out = listed(f"output {argument.name[:64]!r} ({argument.type[:64]})" for argument in odd)
        self.document = metadata.decode(session.get_modelmeta().custom_metadata_map)
        self.golden = golden.decode(session.get_modelmeta().custom_metadata_map) if self.document is not None else None
        self.batched = _batched(self.inputs, self.outputs)
        self.defaults = tuple(argument.name for argument in session.get_overridable_initializers())
        self.data: Mapping[str, bytes] = {}  # files next to the model file, from which onnxruntime reads its weights
        self.nodes = nodes(session)  # by provider; empty on the CPU
        self.apart = ""  # why requests do not share a run although the first dimensions have one name
        pin = page_lock(device) if self.provider in GPU else None
        self.input_buffers = tuple(Buffer(pin) for _ in self.inputs)
        self.output_buffers = tuple(Buffer(pin) for _ in self.outputs)
        # By the shapes and dtypes of the inputs, without N: batch size -> padded batch size.
        self.padding: dict[Hashable, dict[int, int]] = {}
        self.sure = True  # that outputs have the shapes stated in the file
        self._binding = session.io_binding()
        self._poison = Poison()
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]
        self._footprint = None if self.provider in GPU or not _any_size(self.inputs) else Footprint()
        self._graphs = Graphs(session, self.inputs, self.outputs, device) if graphs else None

    @property
    def elsewhere(self) -> str:
        """Which share of the network another provider runs; "" for none."""
        others = {name: count for name, count in self.nodes.items() if name != self.provider}
        return listed(f"{count} of {sum(self.nodes.values())} nodes run on {name}" for name, count in others.items())

    def rooms(
        self, arrays: Sequence[NDArray[np.generic]], slots: Mapping[int, NDArray[np.uint8]]
    ) -> list[NDArray[np.generic] | None]:
        """Memory for the outputs of a run, as far as the file determines their shapes; empty if that gains nothing.

        slots  memory by output number; used if it has exactly the output's size
        """
        # On the CPU, onnxruntime's arena already reuses memory and returns it without a copy.
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

        rooms  memory for the outputs, one per output or empty; None: newly allocated
        Raises DeviceLost, Unwritten, and any onnxruntime error, such as for an output that does not have the shape of
        its room.
        """
        footprint = self._footprint
        returns = footprint is not None and footprint.returns(sum([values.nbytes for values in arrays]))
        options = _returning() if returns else None
        try:
            if any(room is not None for room in rooms):
                return self._run_bound(arrays, rooms, options)
            if self._graphs is not None:
                return self._run_graph(self._graphs, arrays)
            return self._run(arrays, options)
        except Exception as error:
            if self.provider in GPU and (isinstance(error, Unwritten) or _is_fault(error)):
                raise DeviceLost(str(error)) from error
            raise

    def run_within(self, arrays: Sequence[NDArray[np.generic]], seconds: float) -> list[NDArray[np.generic]]:
        """As `run`, but raises if the run has not ended after `seconds`; onnxruntime checks between nodes."""
        options = RunOptions()
        options.log_severity_level = 4  # failures in a test are not errors
        timer = threading.Timer(seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return self._run(arrays, options)
        except Exception as error:
            if self.provider in GPU and _is_fault(error):
                raise DeviceLost(str(error)) from error
            raise
        finally:
            timer.cancel()

    def run_apart(self, reason: str) -> None:
        """Run requests separately from now on. A network with metadata still accepts rows, one at a time."""
        self.apart = reason
        self.batched = self.batched and self.document is not None

    def join(self) -> None:
        """Let requests share runs, whatever the names of the first dimensions. Raises BadModelFile if one is fixed."""
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
        self,
        arrays: Sequence[NDArray[np.generic]],
        rooms: Sequence[NDArray[np.generic] | None],
        options: RunOptions | None,
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
            self._poison.put(rooms)
            self._session.run_with_iobinding(binding, options)
            if (number := self._poison.remains(rooms)) is not None:
                raise Unwritten(f"the run did not write output {self._output_names[number][:64]!r}")
            outputs = binding.get_outputs()
            return [value.numpy() if room is None else room for value, room in zip(outputs, rooms, strict=True)]
        finally:
            # The binding is reused and must not keep references: a front end's memory may be freed.
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()


def load(file: Path, provider: str, device: int, threads: int) -> Session:
    """The session of a model file, with default settings."""
    return load_on(file, Device(provider, EngineConfig(device=device)), threads)


def load_on(file: Path, device: Device, threads: int) -> Session:
    """The session of a model file. `threads` 0 means one per core.

    Raises BadModelFile if the file, its metadata or the provider is invalid, naming what was wanted. There is no silent
    fallback from GPU to CPU: with provider `auto` and no GPU, a warning names the affected settings.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    # Spinning would save a few microseconds per run but take CPU time from the front ends.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: other problems are reported as BadModelFile
    if device.provider != "cpu":
        preload()
    try:
        chosen = providers(device, file)
        if chosen != [CPU]:
            record_nodes(options)
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
    _log_provider(device, chosen, got, file)
    loaded = Session(session, device.config.device, graphs=device.config.cuda_graphs and got == CUDA)
    loaded.data = data
    _check(loaded)
    _warm_up(loaded, file)
    return loaded


def _read_beside(file: Path) -> dict[str, bytes]:
    """The contents of the data files that a model file names, by name.

    onnxruntime would map them instead: overwriting a file in place would change the answers of the loaded model, and
    truncating it would crash the process.
    """
    return {each.name: each.read_bytes() for each in beside(file)}


def _log_provider(device: Device, chosen: Options, got: str, file: Path) -> None:
    if got in GPU:
        return
    name = "model {} version {}".format(*file.parts[-3:-1])
    if len(chosen) > 1:
        log.warning("%s runs on the CPU: CUDA is offered but could not be used", name)
    if device.gpu_options:
        log.warning("%s runs on the CPU, where nothing follows %s", name, ", ".join(device.gpu_options))


def beside(file: Path) -> list[Path]:
    """The files in the folder of a model file whose names occur in it: its weights may be there."""
    if not file.is_file() or not file.stat().st_size:
        return []  # onnxruntime reports what is wrong with it
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as model:
        return [
            each
            for each in sorted(file.parent.iterdir())
            if each != file and each.is_file() and model.find(os.fsencode(each.name)) >= 0
        ]


def _first_line(error: Exception, file: Path) -> str:
    # The folder, too: a message may name a file next to the model. No path of the server is sent to a client.
    text = str(error).replace(str(file), "the file").replace(str(file.parent), "its folder")
    if "escapes model directory" in text:  # onnxruntime names the target of the link
        return "a data file that it names leads outside its folder: put the data next to it, or link both files"
    return runtime_reason(RuntimeError(text)) if text.strip() else type(error).__name__


def _is_fault(error: Exception) -> bool:
    return any(fault in str(error) for fault in _DEVICE_FAULTS)


def _spec(argument: onnxruntime.NodeArg) -> TensorSpec:
    if argument.type not in OF_ONNX:
        raise BadModelFile(f"tensor {argument.name!r} is {argument.type}, want one of {', '.join(OF_ONNX)}")
    for name in (argument.name, *(side for side in argument.shape if isinstance(side, str))):
        if len(name) > MOST_OF_A_NAME:
            raise BadModelFile(f"the name {named(name)} has {len(name)} characters, want at most {MOST_OF_A_NAME}")
    if len(argument.shape) > MAX_RANK:
        raise BadModelFile(f"tensor {argument.name!r} has rank {len(argument.shape)}, want at most {MAX_RANK}")
    shape = tuple(side if isinstance(side, int) and side >= 0 else None for side in argument.shape)
    # The first dimension keeps even a placeholder: if all tensors have the same one, batching is worth a test.
    names = tuple(
        side if isinstance(side, str) and (axis == 0 or not is_placeholder(side)) else ""
        for axis, side in enumerate(argument.shape)
    )
    return TensorSpec(argument.name, OF_ONNX[argument.type], shape, names)


def _batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    # Requests may share a run only if the file states that the first dimension is the same free dimension everywhere.
    first = {(spec.names[0] if spec.names else "") for spec in (*inputs, *outputs)}
    return len(first) == 1 and first != {""}


def _any_size(inputs: Sequence[TensorSpec]) -> bool:
    """Whether requests choose more of the inputs' shapes than the number of rows."""
    return any(None in spec.shape[1:] for spec in inputs)


def _returning() -> RunOptions:
    """Options of a run that returns the arena's free memory to the system at its end."""
    options = RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _output_shapes(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], arrays: Sequence[NDArray[np.generic]]
) -> list[tuple[int, ...] | None]:
    """The shapes of the outputs for these inputs as stated in the file; None where it does not state one."""
    sides: dict[str, int] = {}
    for spec, values in zip(inputs, arrays, strict=True):
        sides.update(zip(spec.names, values.shape, strict=False))  # a file may leave the rank open
    sides.pop("", None)
    shapes: list[tuple[int, ...] | None] = []
    for spec in outputs:
        free = zip(spec.shape, spec.names, strict=True)
        shape = [sides.get(name) if side is None else side for side, name in free]
        shapes.append(None if None in shape else tuple(side for side in shape if side is not None))
    return shapes


def _check(session: Session) -> None:
    """Check that the tensors match the document. Raises BadModelFile."""
    document = session.document
    if document is None:
        return
    expected = declared.shapes(document, {spec.name for spec in session.outputs}, input_shape(document))
    names = {spec.name: spec for spec in session.outputs}
    takes, first = document.takes, session.inputs[0]
    sides = [None, *(axis.size for axis in takes.axes)]
    if len(session.inputs) != 1 or (first.name, first.dtype) != (takes.name, takes.dtype):
        inputs = [f"{spec.dtype} {spec.name!r}" for spec in session.inputs]
        raise BadModelFile(f"inputs are {', '.join(inputs)}, want one {takes.dtype} tensor {takes.name!r}")
    if len(first.shape) != len(sides) or any(
        want not in (None, got) for want, got in zip(sides[1:], first.shape[1:], strict=True)
    ):
        raise BadModelFile(f"input {first.name!r} has shape {list(first.shape)}, the document requires {sides}")
    if not session.batched:
        raise BadModelFile("the first dimension of every tensor must be free and have one name")
    for name, (dtype, _) in expected.items():
        if name not in names or names[name].dtype != dtype:
            raise BadModelFile(f"outputs are {sorted(names)}, a {document.task} document wants {name!r} as {dtype}")


def _warm_up(session: Session, file: Path) -> None:
    """Run once before the model is ready: no caller meets the first-run stall, and the outputs are checked."""
    document = session.document
    if document is None:
        return
    example = session.golden
    shape = input_shape(document) if example is None else example.shape
    values = np.zeros((2, *shape), document.takes.dtype)
    if example is not None:
        values[:1] = golden.input_of(example, document.takes.dtype)
    if document.input is not None:  # any pixels are an image; of other tensors only their zeros are known to be valid
        values[1:] = np.random.default_rng(_SEED).integers(0, 256, shape)
    names = [spec.name for spec in session.outputs]
    try:
        outputs = dict(zip(names, session.run([values]), strict=True))
    except Exception as error:  # as in load: whatever the error, this version is not served
        raise BadModelFile(f"the first run failed: {_first_line(error, file)}") from error
    for name, (_, row) in declared.shapes(document, set(names), shape).items():
        if outputs[name].shape != (2, *row):
            got = list(outputs[name].shape)
            raise BadModelFile(f"output {name!r} has shape {got}, the document requires {[2, *row]}")
        # Of invented inputs, some may have no answer: NaN is refused when a caller would get it.
        if reason := declared.wrong(document, name, np.nan_to_num(outputs[name], nan=0.0)):
            raise BadModelFile(f"output {name!r}: {reason}")
    if example is not None and (wrong := golden.difference(example, _first_rows(outputs))):
        raise BadModelFile(f"{WRONG_EXAMPLE} on {session.provider} than at export: {wrong}")


def check_example(session: Session) -> str:
    """How the answer to the file's example differs from that at export; "" if it does not, or if there is none.

    Raises what `run` raises.
    """
    example, document = session.golden, session.document
    if example is None or document is None:
        return ""
    outputs = session.run([golden.input_of(example, document.takes.dtype)])
    return golden.difference(example, dict(zip((spec.name for spec in session.outputs), outputs, strict=True)))


def check_seal(session: Session, file: Path) -> None:
    """Raises BadModelFile if the graph is not the one that was exported, which its example may not show."""
    example = session.golden
    if example is None or not example.graph_bytes:
        return
    digest, left = hashlib.sha256(), example.graph_bytes
    with file.open("rb") as stream:
        while left > 0 and (piece := stream.read(min(left, _PIECE))):
            digest.update(piece)
            left -= len(piece)
    if left or digest.hexdigest() != example.graph_sha256:
        raise BadModelFile("its graph is not the one that was exported: the file is damaged, or was changed since")


def _first_rows(outputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    return {name: values[:1] for name, values in outputs.items()}
