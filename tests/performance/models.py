"""Model repositories for the measurements: a network that is nearly nothing, and real ones with random weights."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from convoy.models import checkpoint, registry, zoo
from convoy.models.export.export import export, onnx_graph
from convoy.models.export.variants import make
from convoy.models.settings import Plan
from convoy.models.training.run import default_settings
from convoy.models.training.train import train
from convoy.service import metadata
from convoy.service.metadata import Axis, Document, InputSpec, TensorInput

CLASSES = 10


def nothing(root: Path, name: str, side: int, colour: Literal["RGB", "L"]) -> Path:
    """A classifier of the mean colour, for images of `side` by `side`: a few microseconds."""
    channels = 3 if colour == "RGB" else 1
    nodes = [
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    nodes.insert(0, helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT))
    weights = {"axes": np.array([1, 2], np.int64), "weights": np.ones((channels, CLASSES), np.float32)}
    document = Document(
        task="classification",
        labels=[str(index) for index in range(CLASSES)],
        input=InputSpec(colour=colour, height=side, width=side),
    )
    return _saved(
        root,
        name,
        nodes,
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", side, side, channels]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES]),
        weights,
        document,
    )


def real(root: Path, architecture: str) -> Path:
    """An architecture of the zoo at its own size, with random weights."""
    checkpoint = root.parent / f"{architecture}.ckpt"
    zoo.untrained(architecture, checkpoint, 1000)
    return export(checkpoint, root).path


def half(root: Path, architecture: str, classes: int = 1000) -> Path:
    """The same in half precision. Random weights are as fast as any."""
    file = root.parent / f"{architecture}.ckpt"
    zoo.untrained(architecture, file, classes)
    description, network = checkpoint.load(file)
    graph = make("fp16", onnx_graph(description, network), description, Plan())
    document = Document(task=description.task, labels=description.labels, input=description.input)
    helper.set_model_props(graph, {metadata.KEY: metadata.encode(document)})
    version = root / f"{architecture}-half" / "1"
    version.mkdir(parents=True)
    onnx.save(graph, version / "model.onnx")
    return version / "model.onnx"


def lenet(root: Path) -> Path:
    """LeNet-5 on float32 tensors `x`, (N, 1, 28, 28), which it pads to its own size; random weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.ZeroPad2d(2), registry.build("lenet5", 1, CLASSES)).eval()
    return _tensors(root, "lenet", "lenet5", network, 1, 28)


def planes(root: Path, architecture: str, channels: int, side: int) -> Path:
    """An architecture on float32 tensors `x`, (N, channels, side, side); random weights. A segmenter's file says
    nothing about itself: it is served as any other."""
    torch.manual_seed(0)
    return _tensors(root, architecture, architecture, registry.build(architecture, channels, 2).eval(), channels, side)


def _tensors(root: Path, name: str, architecture: str, network: nn.Module, channels: int, side: int) -> Path:
    task = registry.architecture(architecture).task
    axes = (Axis(name="channel", size=channels), Axis(name="height", size=side), Axis(name="width", size=side))
    description = checkpoint.Description(
        architecture=architecture,
        arguments={},
        task=task,
        tensor=TensorInput(name="x", dtype="float32", axes=axes),
        data="",
        labels=[str(index) for index in range(CLASSES)],
        palette=None,
        mean=[0.0] * channels,
        std=[1.0] * channels,
    )
    graph = onnx_graph(description, network)
    if task == "classification":
        document = Document(task=task, labels=description.labels, tensor=description.tensor)
        helper.set_model_props(graph, {metadata.KEY: metadata.encode(document)})
    file = root / name / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(graph, file)
    return file


def trained(root: Path, architecture: str, data: str = "digits") -> Path:
    """An architecture of the zoo, trained with its defaults."""
    run = root.parent / f"{architecture}-run"
    return export(run / train(default_settings(architecture, data), run).checkpoint, root).path


def levels(root: Path) -> Path:
    """A segmenter of RGB images of any size whose classes are the levels of red: it answers the pixels it was given."""
    document = Document(
        task="segmentation",
        labels=[str(level) for level in range(256)],
        input=InputSpec(colour="RGB", multiple=4, fit="pad"),
    )
    return _saved(
        root,
        "levels",
        [helper.make_node("Gather", ["image", "red"], ["mask"], axis=3)],
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3]),
        helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", "H", "W"]),
        {"red": np.array(0, np.int64)},
        document,
    )


def features(root: Path, name: str) -> Path:
    """A classifier of eight floats, 32 bytes: a few microseconds."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    axes = (Axis(name="channel", size=2), Axis(name="time", size=4))
    document = Document(
        task="classification",
        labels=[str(index) for index in range(CLASSES)],
        tensor=TensorInput(name="x", dtype="float32", axes=axes),
    )
    return _saved(
        root,
        name,
        nodes,
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 4]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES]),
        {"weights": np.ones((8, CLASSES), np.float32)},
        document,
    )


def floats(root: Path, side: int) -> Path:
    """The mean of a float32 tensor `x`, (N, 3, side, side), by a file that says nothing about itself."""
    return _saved(
        root,
        "floats",
        [helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0)],
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side]),
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N"]),
        {"axes": np.array([1, 2, 3], np.int64)},
        None,
    )


def _saved(
    root: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    taken: onnx.ValueInfoProto,
    given: onnx.ValueInfoProto,
    constants: dict[str, np.ndarray],
    document: Document | None,
) -> Path:
    values = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, [taken], [given], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if document is not None:
        helper.set_model_props(model, {metadata.KEY: metadata.encode(document)})
    file = root / name / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(model, file)
    return file
