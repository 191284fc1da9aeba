"""Whatever file, folder or text a command is given, it ends with one line, never with a traceback."""

import io
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from convoy.service import cli
from tests.service import networks

LONG = "x" * 300


def picture(kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(data, kind, **options)
    return data.getvalue()


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    return data.getvalue()


def network(shape: list[str | int] | None, op: str = "Relu", kind: int = TensorProto.FLOAT) -> bytes:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "network",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


def external() -> bytes:
    model = networks.doubler()
    tensor = model.graph.initializer.add()
    tensor.CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]))
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../nowhere.data"), ("offset", "-1"), ("length", "8")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model.SerializeToString()


FILES: dict[str, bytes] = {
    "empty": b"",
    "newline": b"\n",
    "zeros": bytes(4096),
    "noise": np.random.default_rng(1).bytes(4096),
    "latin-1": "path,label\ncaf\xe9.png,caf\xe9\n".encode("latin-1"),
    "utf-16": "path,label\na.png,a\n".encode("utf-16"),
    "utf-16-bare": "path,label\na.png,a\n".encode("utf-16-le"),
    "mark-only": b"\xef\xbb\xbf",
    "carriage-returns": b"path,label\ra.png,a\r",
    "open-quote": b'path,label\na.png,"a\n' + b"b.png,b\n" * 30000,
    "nul-in-text": b"path,label\na\0.png,a\n",
    "heads-only": b"path,label\n",
    "wrong-heads": b"file,class\na.png,a\n",
    "missing-file": b"path,label\nnowhere.png,a\nnowhere2.png,b\n",
    "path-outside": b"path,label\n../../../../etc/passwd,a\n/etc/passwd,b\n",
    "json-open": b'{"a": [1, 2',
    "json-deep": b"[" * 100_000,
    "json-wrong": b'{"a": 1e999, "b": NaN}',
    "json-list": b"[[1, 2], [3]]",
    "toml-open": b"[server\n",
    "toml-deep": b"a = " + b"[" * 100_000,
    "toml-unknown": b"[nowhere]\nkey = 1\n",
    "toml-type": b"[server]\ngrpc_port = 'eight'\n[batching]\nmax_batch_size = -1\n",
    "toml-twice": b"a = 1\na = 2\n",
    "png": picture("PNG"),
    "png-cut": picture("PNG")[:40],
    "png-head": picture("PNG")[:8],
    "jpeg": picture("JPEG"),
    "jpeg-cut": picture("JPEG")[:200],
    "gif-cut": picture("GIF")[:20],
    "zip": zipped(),
    "zip-cut": zipped()[:60],
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
    "hdf-head": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "onnx": network(["N", 3, 8, 8]),
    "onnx-cut": network(["N", 3, 8, 8])[:30],
    "onnx-document": networks.classifier().SerializeToString(),
    "onnx-minus-one": network([-1, 3, 8, 8]),
    "onnx-question": network(["?", "?", "?", "?"]),
    "onnx-no-shape": network(None),
    "onnx-huge": network(["N", 2**40, 2**20, 3]),
    "onnx-negative": network([-5, 3]),
    "onnx-no-such-operator": network(["N", 4], "NoSuchOperator"),
    "onnx-strings": network(["N", 4], "Identity", TensorProto.STRING),
    "onnx-bfloat16": network(["N", 4], "Identity", TensorProto.BFLOAT16),
    "onnx-outside": external(),
    "onnx-bad-document": networks.classifier().SerializeToString().replace(b'"task"', b'"tusk"'),
}
PLACES = (
    "folder",
    "files-in-it",
    "missing",
    "dangling",
    "loop",
    "no-folder",
    "long",
    "newline-in-name",
    "bytes-in-name",
)

COMMANDS: dict[str, Callable[[str, Path], Sequence[str]]] = {
    "classify": lambda path, out: ["classify", path, "--server", "127.0.0.1:9", "--deadline", "0.2"],
    "segment": lambda path, out: [
        "segment",
        path,
        "-o",
        f"{out}/m.png",
        "--server",
        "127.0.0.1:9",
        "--deadline",
        "0.2",
    ],
    "data check": lambda path, out: ["data", "check", path],
    "train --data": lambda path, out: ["train", "lenet5", "--data", path, "--epochs", "1", "--output", f"{out}/run"],
    "train --config": lambda path, out: ["train", "--config", path, "--output", f"{out}/run"],
    "train --resume": lambda path, out: ["train", "--resume", path],
    "evaluate": lambda path, out: ["evaluate", path],
    "report": lambda path, out: ["report", path],
    "compare": lambda path, out: ["compare", path, path, "--output", f"{out}/comparison.html"],
    "export": lambda path, out: ["export", path, "--repository", str(out)],
    "inspect": lambda path, out: ["inspect", path],
    "visualize class": lambda path, out: ["visualize", "class", path],
    "visualize layers": lambda path, out: ["visualize", "layers", path],
    "adopt": lambda path, out: ["adopt", path],
    "adopt --repository": lambda path, out: ["adopt", path, "--repository", str(out), "--name", "adopted"],
    "adopt --labels": lambda path, out: ["adopt", path, "--labels", path, "--repository", str(out)],
    "adopt-weights": lambda path, out: ["adopt-weights", "resnet18", path, "--output", f"{out}/weights.ckpt"],
    "template": lambda path, out: ["template", path, "--name", "crop", "--repository", str(out)],
    "profile": lambda path, out: ["profile", path, "--repository", str(out), "--max-batch-size", "1"],
    "simulate --profile": lambda path, out: ["simulate", "--profile", path, "--seconds", "1"],
    "simulate --trace": lambda path, out: [
        *("simulate", "--times", "1:6,32:40", "--load", "trace", "--trace", path, "--seconds", "1")
    ],
    "serve --config": lambda path, out: ["serve", "--repository", f"{out}/nowhere", "--config", path],
}
# The suffix by which a command chooses a reader: each bad content comes under its own as well as under a wrong one.
SUFFIXES = ("", ".onnx", ".ckpt", ".csv", ".h5", ".pth", ".json", ".toml", ".png")
TAKEN = {
    "adopt-weights": (".h5", ".pth"),
    "evaluate": (".ckpt", ".onnx"),
    "inspect": (".onnx", ".ckpt"),
    "adopt": (".onnx",),
    "adopt --repository": (".onnx",),
    "profile": (".onnx",),
    "export": (".ckpt",),
    "visualize class": (".ckpt",),
    "visualize layers": (".ckpt",),
    "train --resume": (".ckpt",),
    "data check": (".csv", ""),
    "train --data": (".csv",),
}


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """`serve` logs to the stderr of its moment, which is closed when the test is over."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for name, data in FILES.items():
        for suffix in SUFFIXES:
            (root / f"{name}{suffix}").write_bytes(data)
    (root / "folder").mkdir()
    (root / "files-in-it").mkdir()
    for name, data in FILES.items():
        (root / "files-in-it" / f"{name}.png").write_bytes(data)
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    return root


def place(root: Path, name: str) -> str:
    names = {
        "no-folder": f"{root}/png/below-a-file",
        "long": f"{root}/{LONG}",
        "newline-in-name": f"{root}/a\nb",
        "bytes-in-name": os.fsdecode(os.fsencode(root) + b"/\xff\xfe"),
    }
    return names.get(name, f"{root}/{name}")


def ends_in_words(command: str, path: str, out: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What is wrong with how the command ended; "" where nothing is."""
    code = cli.run(COMMANDS[command](path, out))
    printed, said = capfd.readouterr()
    if code not in (0, 1, 2):
        return f"{command} {path!r}: exit code {code}: {said[-300:]}"
    if "Traceback" in printed + said:
        return f"{command} {path!r}: a traceback"
    last = said.splitlines()[-1] if said else ""
    if code == 2 and not last.startswith("convoy "):
        return f"{command} {path!r}: {said[-300:]}"
    return f"{command} {path!r}: a line of {len(last)}" if len(last) > 2000 else ""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", COMMANDS)
def test_command_ends_in_words_whatever_it_is_given(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"{corpus}/{name}{suffix}" for name in FILES for suffix in TAKEN.get(command, ("",))]
    tried = [*files, *(place(corpus, name) for name in PLACES), "", "-"]
    assert len(tried) >= len(FILES) + len(PLACES)
    faults = [fault for path in tried if (fault := ends_in_words(command, path, tmp_path, capfd))]
    assert not faults, "\n".join(faults)


def test_corpus_is_large_enough() -> None:
    assert sum(len(FILES) * len(TAKEN.get(command, ("",))) + len(PLACES) for command in COMMANDS) >= 300


def test_a_traceback_would_be_seen(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprising(name: str, arguments: Sequence[str]) -> int:
        raise KeyError("nobody has thought of it")

    monkeypatch.setattr(cli, "_call", surprising)
    assert "exit code 70" in ends_in_words("inspect", f"{corpus}/empty.onnx", tmp_path, capfd)
