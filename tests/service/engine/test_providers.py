"""What onnxruntime is asked for on each device, and how a model is refused or told about what nothing follows."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import OrtValue

from convoy.service import metadata
from convoy.service.config import MIB, EngineConfig
from convoy.service.engine import cuda_graphs, providers
from convoy.service.engine.cuda_graphs import Graphs
from convoy.service.engine.providers import CPU, CUDA, TENSORRT, Device, check
from convoy.service.engine.session import Session, load, load_on
from convoy.service.errors import BadModelFile
from convoy.service.metadata import Document, InputSpec
from convoy.service.repository import TensorSpec
from tests.service import networks


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this onnxruntime offers; to be changed."""
    found = [TENSORRT, CUDA, CPU]
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: found)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return networks.save(networks.classifier(), tmp_path, "letters", 1)


def options(file: Path, name: str, **engine: Any) -> dict[str, str]:
    """Those of one provider."""
    found = providers.providers(Device("auto", EngineConfig(**engine), 16), file)
    return dict(each for each in found if isinstance(each, tuple))[name]


def test_cuda_gets_its_memory_limit_and_its_graphs(offered: list[str], file: Path) -> None:
    plain = options(file, CUDA, device=3)
    assert plain["device_id"] == "3"
    assert plain["cudnn_conv_algo_search"] == "HEURISTIC"
    assert plain["arena_extend_strategy"] == "kSameAsRequested"
    assert not {"gpu_mem_limit", "enable_cuda_graph"} & plain.keys()
    full = options(file, CUDA, gpu_memory_mib=512, cuda_graphs=True)
    assert full["gpu_mem_limit"] == str(512 * MIB)
    assert full["enable_cuda_graph"] == "1"


def test_tensorrt_keeps_what_it_has_built_beside_the_model_or_where_it_is_told(offered: list[str], file: Path) -> None:
    found = options(file, TENSORRT, tensorrt="fp16", device=1)
    assert (found["trt_fp16_enable"], found["trt_engine_cache_enable"], found["device_id"]) == ("1", "1", "1")
    assert found["trt_engine_cache_path"] == str(file.parent / "tensorrt")
    told = options(file, TENSORRT, tensorrt="fp32", tensorrt_cache="/var/cache/convoy")
    assert (told["trt_fp16_enable"], told["trt_engine_cache_path"]) == ("0", "/var/cache/convoy")


def test_tensorrt_builds_one_engine_for_all_batches(offered: list[str], file: Path, tmp_path: Path) -> None:
    found = options(file, TENSORRT, tensorrt="fp32")
    assert found["trt_profile_min_shapes"] == "image:1x8x8x1"
    assert found["trt_profile_max_shapes"] == found["trt_profile_opt_shapes"] == "image:16x8x8x1"
    any_size = networks.save(networks.segmenter(), tmp_path, "colours", 1)
    assert "trt_profile_max_shapes" not in options(any_size, TENSORRT, tensorrt="fp32")


def test_gpu_stands_first_and_the_cpu_last(offered: list[str], file: Path) -> None:
    def names(provider: str, **engine: Any) -> list[str]:
        found = providers.providers(Device(provider, EngineConfig(**engine)), file)
        return [each if isinstance(each, str) else each[0] for each in found]

    assert names("auto") == names("cuda") == [CUDA, CPU]
    assert names("auto", tensorrt="fp16") == [TENSORRT, CUDA, CPU]
    assert names("cpu", tensorrt="fp16") == [CPU]
    offered.remove(TENSORRT)
    with pytest.raises(BadModelFile, match=r"engine\.tensorrt is set, but this onnxruntime offers only CUDA"):
        names("auto", tensorrt="fp16")
    offered.remove(CUDA)
    assert names("auto", tensorrt="fp16") == [CPU]
    with pytest.raises(BadModelFile, match="install onnxruntime-gpu"):
        names("cuda")


def test_gpu_that_could_not_be_used_is_no_silent_cpu(offered: list[str]) -> None:
    wanted: providers.Options = [(TENSORRT, {}), (CUDA, {}), CPU]
    check("auto", wanted, TENSORRT)
    for provider in ("auto", "cuda"):
        with pytest.raises(BadModelFile, match="TensorRT could not be used"):
            check(provider, wanted, CUDA)
    check("auto", wanted[1:], CPU)
    with pytest.raises(BadModelFile, match="no CUDA device could be used"):
        check("cuda", wanted[1:], CPU)


def test_settings_that_nothing_follows_are_told_in_one_line(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = EngineConfig(cuda_graphs=True, gpu_memory_mib=100)
    with caplog.at_level(logging.INFO):
        load_on(file, Device("cpu", EngineConfig()), 1)
        assert not caplog.records
        session = load_on(file, Device("cpu", config), 1)
    (told,) = caplog.records
    assert told.getMessage() == (
        "model letters version 1 runs on the CPU, where nothing follows engine.gpu_memory_mib, engine.cuda_graphs"
    )
    assert session.run([np.zeros((1, 8, 8, 1), np.uint8)])[0].shape == (1, 10)


class Value:
    """An OrtValue in the memory of a device."""

    made = 0

    def __init__(self, shape: tuple[int, ...], dtype: type, device: str, number: int) -> None:
        assert (device, number) == ("cuda", 2)
        self.values = np.full(shape, 99, dtype)
        Value.made += 1

    def update_inplace(self, values: np.ndarray) -> None:
        assert values.shape == self.values.shape
        self.values[...] = values

    def numpy(self) -> np.ndarray:
        return self.values.copy()


class Recorder:
    """A session that repeats, for a number that it has seen, what it did then: the same memory, come what may."""

    def __init__(self) -> None:
        self.recorded: dict[str, Any] = {}
        self.runs: list[str] = []

    def io_binding(self) -> Any:
        class Binding:
            def bind_ortvalue_input(self, name: str, value: Value) -> None:
                self.x = value

            def bind_ortvalue_output(self, name: str, value: Value) -> None:
                self.y = value

        return Binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        number = options.get_run_config_entry("gpu_graph_id")
        self.runs.append(number)
        graph = self.recorded.setdefault(number, binding)
        graph.y.values[...] = 2 * graph.x.values


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, Graphs]:
    class Values:
        ortvalue_from_shape_and_type = staticmethod(Value)

    monkeypatch.setattr(cuda_graphs, "OrtValue", Values)
    monkeypatch.setattr(Value, "made", 0)
    recorder: Any = Recorder()
    spec = TensorSpec("x", "float32", (None, 4), ("N", ""))
    return recorder, Graphs(recorder, [spec], [spec], 2)


def test_graph_of_each_shape_is_made_once_and_repeated(made: tuple[Recorder, Graphs]) -> None:
    recorder, several = made
    random = np.random.default_rng(0)
    for rows in (1, 3, 1, 2, 3, 1):
        values = random.random((rows, 4)).astype(np.float32)
        outputs = several.run([values], [(rows, 4)])
        assert outputs is not None
        assert (outputs[0] == 2 * values).all()
    assert recorder.runs == ["1", "2", "1", "3", "2", "1"]
    assert Value.made == 6


def test_shape_beyond_the_last_graph_runs_without_one(
    made: tuple[Recorder, Graphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST", 1)
    _, several = made
    assert several.run([np.ones((1, 4), np.float32)], [(1, 4)]) is not None
    assert several.run([np.ones((2, 4), np.float32)], [(2, 4)]) is None
    assert several.without.get_run_config_entry("gpu_graph_id") == "-1"  # or it would repeat the first


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs whose memory is the CPU's: there onnxruntime runs what a GPU would repeat."""

    class Values:
        @staticmethod
        def ortvalue_from_shape_and_type(shape: tuple[int, ...], dtype: type, device: str, number: int) -> OrtValue:
            return OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cpu")

    monkeypatch.setattr(cuda_graphs, "OrtValue", Values)


@pytest.mark.usefixtures("on_cpu")
def test_session_with_graphs_answers_as_one_without(tmp_path: Path) -> None:
    file = networks.save(networks.segmenter(), tmp_path, "colours", 1)
    session = Session(onnxruntime.InferenceSession(str(file), providers=[CPU]), graphs=True)
    random = np.random.default_rng(4)
    for rows, height in ((1, 8), (3, 8), (1, 8), (2, 4), (3, 8), (1, 8)):
        image = random.integers(0, 256, (rows, height, 8, 3), np.uint8)
        assert session.rooms([image], {}) == []  # the graph's memory stays where it is
        mask, confidence = session.run([image])
        assert (mask == image.argmax(axis=3)).all()
        assert (confidence == image.max(axis=3)).all()


@pytest.mark.usefixtures("on_cpu")
def test_network_whose_outputs_are_not_known_before_has_no_graphs(tmp_path: Path) -> None:
    file = networks.save(networks.compressor(), tmp_path, "compressor", 1)
    session = Session(onnxruntime.InferenceSession(str(file), providers=[CPU]), graphs=True)
    (found,) = session.run([np.array([1, -1, 2], np.float32)])
    assert found.tolist() == [1, 2]


def half() -> onnx.ModelProto:
    """As `classifier`, computed in half precision between the uint8 input and the float32 softmax."""
    nodes = [
        helper.make_node("Cast", ["image"], ["halves"], to=TensorProto.FLOAT16),
        helper.make_node("Flatten", ["halves"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["half_logits"]),
        helper.make_node("Cast", ["half_logits"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(networks.classifier_weights().astype(np.float16), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    document = Document(
        task="classification", labels=list("abcdefghij"), input=InputSpec(colour="L", height=8, width=8)
    )
    helper.set_model_props(model, {metadata.KEY: metadata.encode(document)})
    return model


def test_network_in_half_precision_answers_as_the_one_in_single(file: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (5, 8, 8, 1), np.uint8)
    (found,) = load(networks.save(half(), tmp_path, "half", 1), "cpu", 0, 1).run([images])
    (wanted,) = load(file, "cpu", 0, 1).run([images])
    assert np.abs(found - wanted).max() < 0.01
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()


def test_nodes_of_a_session_are_counted_by_provider_where_they_were_recorded(file: Path) -> None:
    recording, plain = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
    providers.record_nodes(recording)
    built = [onnxruntime.InferenceSession(str(file), each, providers=[CPU]) for each in (recording, plain)]
    assert [providers.nodes(session) for session in built] == [{CPU: 4}, {}]
