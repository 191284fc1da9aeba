"""External data are found wherever a file hides them, and hostile files are refused before onnxruntime opens them."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convoy.service.client.client import Client
from convoy.service.engine.external_data import locations
from convoy.service.errors import BadModelFile
from tests.service import networks
from tests.service.running import Server
from tests.service.test_overload import PATIENT, _wait_until


def tensor(location: str, name: str = "w") -> TensorProto:
    """Four numbers that lie in another file."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1, 4])
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value=location)
    made.external_data.add(key="offset", value="0")
    return made


def naming(location: str) -> onnx.ModelProto:
    """y = w x, with w in another file."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "network", [x], [y], [tensor(location)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def hidden_in_a_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor("hidden")))


def hidden_in_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [], [tensor("hidden")])
    model.graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=branch, else_branch=branch))


def hidden_in_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=tensor("hidden"))
    model.functions.append(helper.make_function("own", "F", [], ["c"], [node], []))


def hidden_in_a_sparse_tensor(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor("hidden"))


def hidden_in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor("hidden"))


@pytest.mark.parametrize(
    "hide",
    [
        hidden_in_a_constant,
        hidden_in_a_branch,
        hidden_in_a_function,
        hidden_in_a_sparse_tensor,
        hidden_in_training,
    ],
)
def test_data_are_found_wherever_they_are_named(tmp_path: Path, hide: Callable[[onnx.ModelProto], None]) -> None:
    model = networks.doubler()
    file = networks.save_bytes(model.SerializeToString(), tmp_path, "m")
    assert locations(file) == set()
    hide(model)
    file.write_bytes(model.SerializeToString())
    assert locations(file) == {"hidden"}


def test_names_that_only_look_like_it_are_none(tmp_path: Path) -> None:
    model = networks.classifier()
    model.doc_string = "\n\x08location\x12\x06hidden"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "location"))
    assert locations(networks.save_bytes(model.SerializeToString(), tmp_path, "m")) == set()


@pytest.mark.parametrize("data", [b"no network", b"\x0b\x0c", b"\x3a\xff\xff\xff\xff\x7f", b"\xff" * 20])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadModelFile, match="it is no ONNX file"):
        locations(networks.save_bytes(data, tmp_path, "m"))


def test_messages_that_are_too_deep_are_refused(tmp_path: Path) -> None:
    data = b""
    for _ in range(300):  # a graph in an attribute of a node of a graph
        for field in (6, 5, 1):
            length = len(data)
            size = bytearray()
            while length > 127:
                size.append(length & 127 | 128)
                length >>= 7
            data = bytes([field << 3 | 2, *size, length]) + data
    outer = len(data)
    size = bytearray()
    while outer > 127:
        size.append(outer & 127 | 128)
        outer >>= 7
    with pytest.raises(BadModelFile, match="too deep"):
        locations(networks.save_bytes(bytes([7 << 3 | 2, *size, outer]) + data, tmp_path, "m"))


def pin(root: Path, model: str, *files: Path) -> None:
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    (root / model / "model.toml").write_text(f"sha256 = {digests}\n")


def hostile(root: Path, outside: Path) -> Iterator[str]:
    """Twelve models that name a file which is not theirs, or are one; yields their names."""
    (outside / "secret").write_bytes(np.full(4, 7, np.float32).tobytes())
    networks.save(networks.doubler(), outside, "other")
    named = {
        "parent": "../secret",
        "far-parent": "a/../../../secret",
        "absolute": str(outside / "secret"),
        "proc": "/proc/self/environ",
        "nul": "w\0/../../secret",
        "itself": "model.onnx",
        "not-listed": "w",
    }
    for name, location in named.items():
        file = networks.save_bytes(naming(location).SerializeToString(), root, name)
        if name == "not-listed":
            file.with_name("w").write_bytes((outside / "secret").read_bytes())
        yield name
    for name in ("linked-data", "hard-linked-data", "fifo-data"):
        file = networks.save_bytes(naming("w").SerializeToString(), root, name)
        data = file.with_name("w")
        if name == "linked-data":
            data.symlink_to(outside / "secret")
        elif name == "hard-linked-data":
            os.link(outside / "secret", data)
        else:
            os.mkfifo(data)
        yield name
    for name in ("linked", "hard-linked"):
        file = root / name / "1" / "model.onnx"
        file.parent.mkdir(parents=True)
        other = outside / "other" / "1" / "model.onnx"
        if name == "linked":
            file.symlink_to(other)
        else:
            os.link(other, file)
        yield name


def test_hostile_models_are_refused_and_the_engine_lives(tmp_path: Path) -> None:
    root, outside = tmp_path / "repository", tmp_path / "outside"
    outside.mkdir()
    networks.save(networks.classifier(), root, "letters")
    names = set(hostile(root, outside))
    assert len(names) == 12
    # A link out of the repository is refused even if its content is known; the others are let in by that.
    pin(root, "linked", outside / "other" / "1" / "model.onnx")
    with Server(root, ["server.lame_duck_seconds=0", PATIENT]) as server, Client(server.grpc) as client:
        _wait_until(lambda: not any(model.state == "loading" for model in client.models()))
        found = {model.model: (model.state, model.reason) for model in client.models()}
        assert {name for name, (state, _) in found.items() if state == "ready"} == {"letters"}
        reasons = {name: reason for name, (_, reason) in found.items() if name in names}
        assert reasons.pop("linked") == "model.onnx is a link out of the repository: copy the file to its place"
        assert reasons.pop("hard-linked").startswith("model.onnx has 2 hard links: copy it, or list the SHA-256")
        assert all("names data in another file" in reason for reason in reasons.values())
        assert not any(str(tmp_path) in reason for name, reason in reasons.items() if name != "absolute")
        assert server.total("convoy_engine_restarts_total") == 0
        # What is listed by its digest serves.
        for name in ("not-listed", "hard-linked-data", "hard-linked"):
            folder = root / name / "1"
            pin(root, name, *(file for file in folder.iterdir() if file.suffix == ".onnx" or file.name == "w"))
            server.wait_for_log(f"model {name} version 1 serves")
        # Another content under the same name does not.
        seen = len(server.log)
        (root / "not-listed" / "1" / "w").write_bytes(np.full(4, 8, np.float32).tobytes())
        server.wait_for_log("model not-listed version 1 stays as it was loaded", after=seen)
