"""Small ONNX files whose answers a test can work out by hand, made with onnx's helper."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convoy.service import metadata
from convoy.service.metadata import Axis, Context, Document, InputSpec, ReceptiveField, TensorInput

SIDE = 8
CLASSES = 10


def classifier_weights(side: int = SIDE) -> np.ndarray:
    """(64, 10): class k looks at the pixels whose index is k modulo 10."""
    weights = np.zeros((side * side, CLASSES), np.float32)
    weights[np.arange(side * side), np.arange(side * side) % CLASSES] = 0.01
    return weights


def classifier(
    labels: Sequence[str] = tuple("abcdefghij"), scale: float = 1.0, shift: int = 0, side: int = SIDE
) -> onnx.ModelProto:
    """8x8 grey images to ten classes: softmax of pixels times `classifier_weights`. With `shift`, class k + shift
    (modulo ten) has the probability that class k has without."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    document = Document(
        task="classification", labels=list(labels), input=InputSpec(colour="L", height=side, width=side)
    )
    return _model(
        nodes,
        [("image", TensorProto.UINT8, ["N", side, side, 1])],
        [("probabilities", TensorProto.FLOAT, ["N", CLASSES])],
        {"weights": np.roll(classifier_weights(side), shift, axis=1) * np.float32(scale)},
        document,
    )


def segmenter(confidence: bool = True, field: ReceptiveField | None = None) -> onnx.ModelProto:
    """RGB images of any size (a multiple of 4) to three classes: which channel is the brightest."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["floats"], ["index"], axis=3, keepdims=0),
        helper.make_node("Cast", ["index"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("ReduceMax", ["floats", "axis"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["confidence"], to=TensorProto.UINT8),
    ]
    document = Document(
        task="segmentation",
        labels=["red", "green", "blue"],
        palette=[(200, 0, 0), (0, 200, 0), (0, 0, 200)],
        input=InputSpec(colour="RGB", multiple=4, fit="pad"),
        receptive_field=field,
    )
    return _model(
        nodes,
        [("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [(name, TensorProto.UINT8, ["N", "H", "W"]) for name in ("mask", "confidence")[: 1 + confidence]],
        {"axis": np.array([3], np.int64)},
        document,
    )


def brightest(side: int) -> onnx.ModelProto:
    """RGB images of side x side to three classes: softmax of the means of their channels, divided by 255."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "most"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return _model(
        nodes,
        [("image", TensorProto.UINT8, ["N", side, side, 3])],
        [("probabilities", TensorProto.FLOAT, ["N", 3])],
        {"axes": np.array([1, 2], np.int64), "most": np.full(1, 255, np.float32)},
        Document(
            task="classification",
            labels=["red", "green", "blue"],
            input=InputSpec(colour="RGB", height=side, width=side),
        ),
    )


JOINTS = ("hip", "knee", "ankle")
WAVES = TensorInput(
    name="waveform",
    dtype="float32",
    unit="degrees",
    axes=(
        Axis(name="channel", size=len(JOINTS), labels=list(JOINTS)),
        Axis(name="time", spacing=0.01, unit="s"),
    ),
)


def waves(tensor: TensorInput = WAVES) -> onnx.ModelProto:
    """Waveforms of any length to the joint that is bent most: softmax of the means over time."""
    nodes = [
        helper.make_node("ReduceMean", ["waveform", "axis"], ["means"], keepdims=0),
        helper.make_node("Softmax", ["means"], ["probabilities"], axis=1),
    ]
    return _model(
        nodes,
        [("waveform", TensorProto.FLOAT, ["N", len(JOINTS), "time"])],
        [("probabilities", TensorProto.FLOAT, ["N", len(JOINTS)])],
        {"axis": np.array([2], np.int64)},
        Document(task="classification", labels=list(JOINTS), tensor=tensor),
    )


def doubler(batched: bool = True) -> onnx.ModelProto:
    """A file that says nothing about itself: y = 2 x, float32; and `total`, the sum over everything else."""
    first: str | int = "N" if batched else 3
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=1),
    ]
    return _model(
        nodes,
        [("x", TensorProto.FLOAT, [first, 4])],
        [("y", TensorProto.FLOAT, [first, 4]), ("total", TensorProto.FLOAT, [first, 1])],
        {"axis": np.array([1], np.int64)},
        None,
    )


def means(name: str, *sides: int) -> onnx.ModelProto:
    """A file that says nothing about itself, with one input of float32 (N, *sides): the mean of each row."""
    node = helper.make_node("ReduceMean", [name, "axes"], ["means"], keepdims=0)
    axes = np.arange(1, len(sides) + 1)
    inputs: list[str | int] = ["N", *sides]
    return _model(
        [node], [(name, TensorProto.FLOAT, inputs)], [("means", TensorProto.FLOAT, ["N"])], {"axes": axes}, None
    )


def copies() -> onnx.ModelProto:
    """y = x: there is nothing to compute."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _model([node], [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])], {}, None)


def constants() -> onnx.ModelProto:
    """y = 0.5 for each row, whatever is in it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["y"], value=numpy_helper.from_array(np.full(1, 0.5, "f4"))),
    ]
    return _model(nodes, [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])], {}, None)


def logits() -> onnx.ModelProto:
    """As `classifier`, but without softmax: its metadata promise probabilities."""
    model = classifier(scale=30.0)
    softmax = model.graph.node.pop()
    softmax.op_type = "Identity"
    del softmax.attribute[:]
    model.graph.node.append(softmax)
    return model


def logits_of_bright_images() -> onnx.ModelProto:
    """As `classifier`, but what it answers is 3e-4 times the cube of each logit: probabilities unless it is bright."""
    model = classifier()
    softmax = model.graph.node.pop()
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["logits", "logits"], ["squares"]),
            helper.make_node("Mul", ["squares", "logits"], ["cubes"]),
            helper.make_node("Mul", ["cubes", "small"], [softmax.output[0]]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.full(1, 3e-4, np.float32), "small"))
    return model


def compressor() -> onnx.ModelProto:
    """Picks the positive values of a vector: how many there are, nobody knows before it has run."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["mask"]),
        helper.make_node("Compress", ["x", "mask"], ["positive"], axis=0),
    ]
    return _model(
        nodes,
        [("x", TensorProto.FLOAT, ["length"])],
        [("positive", TensorProto.FLOAT, ["some"])],
        {"zero": np.zeros(1, np.float32)},
        None,
    )


def table_lookup(table: np.ndarray) -> onnx.ModelProto:
    """Rows of a table by their numbers."""
    return _model(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", TensorProto.INT64, ["N"])],
        [("y", TensorProto.FLOAT, ["N", table.shape[1]])],
        {"table": table},
        None,
    )


def with_default() -> onnx.ModelProto:
    """y = w x, where w is an input that has a value of its own, 2."""
    model = _model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 4])],
        [("y", TensorProto.FLOAT, ["N", 4])],
        {"w": np.full(1, 2, np.float32)},
        None,
    )
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    return model


def with_strings() -> onnx.ModelProto:
    """y = 2 x, and beside it the same as text, as classifiers of tables have their labels."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Cast", ["y"], ["label"], to=TensorProto.STRING),
    ]
    outputs: list[tuple[str, int, list[str | int]]] = [
        ("label", TensorProto.STRING, ["N", 4]),
        ("y", TensorProto.FLOAT, ["N", 4]),
    ]
    return _model(nodes, [("x", TensorProto.FLOAT, ["N", 4])], outputs, {}, None)


def first_sides() -> dict[str, onnx.ModelProto]:
    """Networks x [N, 4] -> y whose first sides all bear one name, though they are no batch of independent rows."""
    one = helper.make_node
    axis = {"axis": np.array(0, np.int64), "axes": np.array([0], np.int64)}
    backwards = {
        "start": np.array([-1], np.int64),
        "end": np.array([-(1 << 62)], np.int64),
        "step": np.array([-1], np.int64),
    }
    half = {"half": np.full(1, 0.5, np.float32)}
    chains: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
        "sum-over-time": ([one("CumSum", ["x", "axis"], ["y"])], {"axis": axis["axis"]}),
        "backwards": ([one("Slice", ["x", "start", "end", "axes", "step"], ["y"])], backwards | {"axes": axis["axes"]}),
        "statistics-of-the-batch": (
            [one("ReduceMean", ["x", "axes"], ["mean"], keepdims=1), one("Sub", ["x", "mean"], ["y"])],
            {"axes": axis["axes"]},
        ),
        "scale-of-the-batch": (
            [one("ReduceMax", ["x"], ["most"], keepdims=0), one("Div", ["x", "most"], ["y"])],
            {},
        ),
        "ranks-among-all": (
            [one("Softmax", ["x"], ["y"], axis=0)],
            {},
        ),
        "one-row": (
            [
                one("ReduceMean", ["x", "sides"], ["mean"], keepdims=0),
                one("Mul", ["mean", "nothing"], ["zeros"]),
                one("Add", ["zeros", "half"], ["halves"]),
                one("CumSum", ["halves", "axis"], ["counted"]),
                one("Less", ["counted", "most"], ["first"]),
                one("Compress", ["x", "first"], ["y"], axis=0),
            ],
            half
            | {
                "axis": axis["axis"],
                "sides": np.array([1], np.int64),
                "nothing": np.zeros(1, np.float32),
                "most": np.full(1, 0.75, np.float32),
            },
        ),
        "detections": (
            [
                one("ReduceMax", ["x", "sides"], ["most"], keepdims=0),
                one("Greater", ["most", "half"], ["found"]),
                one("Compress", ["x", "found"], ["y"], axis=0),
            ],
            half | {"sides": np.array([1], np.int64)},
        ),
        "no-answer-differs": ([one("Mul", ["x", "nothing"], ["y"])], {"nothing": np.zeros(1, np.float32)}),
    }
    return {
        name: _model(nodes, [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])], constants, None)
        for name, (nodes, constants) in chains.items()
    }


def independent() -> dict[str, onnx.ModelProto]:
    """Networks x -> y whose rows are independent, of several types and free sides."""
    one = helper.make_node
    kernel = np.random.default_rng(3).normal(size=(2, 3, 3, 3)).astype(np.float32)
    table = np.random.default_rng(4).normal(size=(10, 3)).astype(np.float32)
    return {
        "picture-of-any-size": _model(
            [one("Conv", ["x", "kernel"], ["y"], pads=[1, 1, 1, 1])],
            [("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
            [("y", TensorProto.FLOAT, ["N", 2, "H", "W"])],
            {"kernel": kernel},
            None,
        ),
        "class-of-each-pixel": _model(
            [one("Conv", ["x", "kernel"], ["z"], pads=[1, 1, 1, 1]), one("ArgMax", ["z"], ["y"], axis=1, keepdims=0)],
            [("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
            [("y", TensorProto.INT64, ["N", "H", "W"])],
            {"kernel": kernel},
            None,
        ),
        "rows-of-a-table": table_lookup(table),
        "half": _model(
            [one("Softmax", ["x"], ["y"], axis=1)],
            [("x", TensorProto.FLOAT16, ["N", 7])],
            [("y", TensorProto.FLOAT16, ["N", 7])],
            {},
            None,
        ),
        "doubler": doubler(),
    }


def residual(side: int = 16, width: int = 8) -> onnx.ModelProto:
    """RGB images to ten classes by convolutions with shortcuts; random weights that tell images apart."""
    rng = np.random.default_rng(5)
    one = helper.make_node
    nodes = [
        one("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        one("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        one("Div", ["floats", "most"], ["x0"]),
        one("Conv", ["x0", "stem"], ["y0"], pads=[1, 1, 1, 1]),
    ]
    constants = {"most": np.full(1, 255, np.float32), "stem": _kernel(rng, width, 3)}
    for block in range(3):
        nodes += [
            one("Relu", [f"y{block}"], [f"a{block}"]),
            one("Conv", [f"a{block}", f"first{block}"], [f"b{block}"], pads=[1, 1, 1, 1]),
            one("Relu", [f"b{block}"], [f"c{block}"]),
            one("Conv", [f"c{block}", f"second{block}"], [f"d{block}"], pads=[1, 1, 1, 1]),
            one("Add", [f"y{block}", f"d{block}"], [f"y{block + 1}"]),
        ]
        constants |= {f"{name}{block}": _kernel(rng, width, width) for name in ("first", "second")}
    nodes += [
        one("GlobalAveragePool", ["y3"], ["pooled"]),
        one("Flatten", ["pooled"], ["features"]),
        one("MatMul", ["features", "last"], ["logits"]),
        one("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants["last"] = rng.normal(0, 2, (width, CLASSES)).astype(np.float32)
    return _model(
        nodes,
        [("image", TensorProto.UINT8, ["N", side, side, 3])],
        [("probabilities", TensorProto.FLOAT, ["N", CLASSES])],
        constants,
        Document(
            task="classification", labels=list("abcdefghij"), input=InputSpec(colour="RGB", height=side, width=side)
        ),
    )


def dense(width: int = 6) -> onnx.ModelProto:
    """RGB images of any size to four classes for each pixel, by convolutions; random weights."""
    rng = np.random.default_rng(6)
    one = helper.make_node
    nodes = [
        one("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        one("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        one("Div", ["floats", "most"], ["x"]),
        one("Conv", ["x", "one"], ["a"], pads=[1, 1, 1, 1]),
        one("Relu", ["a"], ["b"]),
        one("Conv", ["b", "two"], ["c"], pads=[1, 1, 1, 1]),
        one("Relu", ["c"], ["d"]),
        one("Conv", ["d", "three"], ["logits"], pads=[1, 1, 1, 1]),
        one("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
        one("Cast", ["index"], ["mask"], to=TensorProto.UINT8),
    ]
    constants = {
        "most": np.full(1, 255, np.float32),
        "one": _kernel(rng, width, 3),
        "two": _kernel(rng, width, width),
        "three": _kernel(rng, 4, width),
    }
    return _model(
        nodes,
        [("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [("mask", TensorProto.UINT8, ["N", "H", "W"])],
        constants,
        Document(task="segmentation", labels=list("abcd"), input=InputSpec(colour="RGB", multiple=4, fit="pad")),
    )


def brightest_pixel() -> onnx.ModelProto:
    """A network that locates a template, here of one pixel: the brightest of a grey image of any size."""
    one = helper.make_node
    nodes = [
        one("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        one("Div", ["floats", "most"], ["scaled"]),
        one("Squeeze", ["scaled", "channel"], ["heat_map"]),
        one("ReduceMax", ["heat_map", "sides"], ["score"], keepdims=0),
        one("ReduceMax", ["heat_map", "across"], ["rows"], keepdims=0),
        one("ReduceMax", ["heat_map", "down"], ["columns"], keepdims=0),
        one("ArgMax", ["rows"], ["row"], axis=1, keepdims=1),
        one("ArgMax", ["columns"], ["column"], axis=1, keepdims=1),
        one("Concat", ["row", "column"], ["location"], axis=1),
    ]
    axes = {"channel": [3], "sides": [1, 2], "across": [2], "down": [1]}
    return _model(
        nodes,
        [("image", TensorProto.UINT8, ["N", "H", "W", 1])],
        [
            ("heat_map", TensorProto.FLOAT, ["N", "H", "W"]),
            ("location", TensorProto.INT64, ["N", 2]),
            ("score", TensorProto.FLOAT, ["N"]),
        ],
        {"most": np.full(1, 255, np.float32), **{name: np.array(each, np.int64) for name, each in axes.items()}},
        Document(task="matching", labels=["brightest"], input=InputSpec(colour="L", fit="pad")),
    )


def minded() -> onnx.ModelProto:
    """As `classifier`, but what an image gets depends on those that are in its batch."""
    model = classifier()
    softmax = model.graph.node.pop()
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["logits", "batch"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["logits", "mean"], ["same_logits"]),
        ]
    )
    softmax.input[0] = "same_logits"
    model.graph.node.append(softmax)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "batch"))
    return model


def _kernel(rng: np.random.Generator, out: int, into: int) -> np.ndarray:
    return rng.normal(0, (2 / (9 * into)) ** 0.5, (out, into, 3, 3)).astype(np.float32)


def unsaid() -> onnx.ModelProto:
    """Picks the columns of two rows in which something is positive; says that it were always all of them."""
    nodes = [
        helper.make_node("ReduceMax", ["x", "axis"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["mask"]),
        helper.make_node("Compress", ["x", "mask"], ["positive"], axis=1),
    ]
    return _model(
        nodes,
        [("x", TensorProto.FLOAT, [2, "columns"])],
        [("positive", TensorProto.FLOAT, [2, "columns"])],
        {"zero": np.zeros(1, np.float32), "axis": np.array([0], np.int64)},
        None,
    )


ORDER, MULTIPLICATIONS = 32, 9000  # of the matrices in `slow`; in one of its rounds


def slow(rounds: int = 24) -> onnx.ModelProto:
    """As `classifier`, but each run first multiplies matrices for a while, however many images it has: 15 ms a round,
    or a few more. They are so small that onnxruntime does it in one thread: the other cores are left to the rest."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("MatMul", ["carried", "big"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [ORDER, ORDER]),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [ORDER, ORDER]),
        ],
    )
    model = classifier()
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"], value=numpy_helper.from_array(np.zeros(1, np.float32))),
        helper.make_node("Loop", ["rounds", "true", "big"], ["zeros"], body=body),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["logits", "zero"], ["same_logits"]),
    ]
    graph = model.graph
    softmax = graph.node.pop()
    graph.node.extend(nodes)
    softmax.input[0] = "same_logits"
    graph.node.append(softmax)
    many = np.array(rounds * MULTIPLICATIONS)
    constants = {"shape": np.array([ORDER, ORDER], np.int64), "rounds": many, "true": np.array(True)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def choosy(brightest: int = 240) -> onnx.ModelProto:
    """As `classifier`, but a run fails where an image's mean is larger than that."""
    model = classifier()
    graph = model.graph
    softmax = graph.node.pop()
    graph.node.extend(
        [
            helper.make_node("Cast", ["image"], ["again"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["again", "sides"], ["mean"], keepdims=0),
            helper.make_node("Cast", ["mean"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["zeros", "place"], ["zero"]),
            helper.make_node("Add", ["logits", "zero"], ["same_logits"]),
        ]
    )
    softmax.input[0] = "same_logits"
    graph.node.append(softmax)
    constants = {"sides": np.arange(1, 4), "zeros": np.zeros((brightest + 1, 1), np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def fatal(what: str = "dies", brightest: int = 240) -> onnx.ModelProto:
    """As `classifier`, but a run with an image whose mean is larger than that ends the process, or never ends.

    what  "dies" (onnxruntime reads the input that Sum does not have) or "hangs"
    """
    number = helper.make_tensor_value_info("number", TensorProto.FLOAT, [])
    if what == "dies":
        bad = [helper.make_node("Sum", ["mean", ""], ["number"])]
    else:
        body = helper.make_graph(
            [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Mul", ["carried", "one"], ["next"])],
            "body",
            [
                helper.make_tensor_value_info("round", TensorProto.INT64, []),
                helper.make_tensor_value_info("going", TensorProto.BOOL, []),
                helper.make_tensor_value_info("carried", TensorProto.FLOAT, []),
            ],
            [
                helper.make_tensor_value_info("still", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
            ],
        )
        bad = [helper.make_node("Loop", ["rounds", "true", "mean"], ["number"], body=body)]
    good = [helper.make_node("Identity", ["one"], ["number"])]
    model = classifier()
    graph = model.graph
    softmax = graph.node.pop()
    graph.node.extend(
        [
            helper.make_node("Cast", ["image"], ["again"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["again", "sides"], ["means"], keepdims=0),
            helper.make_node("ReduceMax", ["means"], ["mean"], keepdims=0),
            helper.make_node("Greater", ["mean", "brightest"], ["is_bad"]),
            helper.make_node(
                "If",
                ["is_bad"],
                ["factor"],
                then_branch=helper.make_graph(bad, "bad", [], [number]),
                else_branch=helper.make_graph(good, "good", [], [number]),
            ),
            helper.make_node("Mul", ["logits", "factor"], ["same_logits"]),
        ]
    )
    softmax.input[0] = "same_logits"
    graph.node.append(softmax)
    constants = {
        "sides": np.arange(1, 4),
        "brightest": np.array(brightest, np.float32),
        "one": np.array(1, np.float32),
    }
    if what == "hangs":
        constants |= {"rounds": np.array(4 * 10**18), "true": np.array(True)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def deadly() -> bytes:
    """A file on which onnxruntime aborts as it loads it: four parts of a tensor that is to be split in two."""
    node = helper.make_node("Split", ["x"], ["a", "b", "c", "d"], axis=0, num_outputs=2)
    x, a = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name, sides in (("x", [4]), ("a", None)))
    graph = helper.make_graph([node], "network", [x], [a])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def endless() -> onnx.ModelProto:
    """y = x, once 4e18 rounds of a loop are over."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still_going"]), helper.make_node("Identity", ["old"], ["new"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("old", TensorProto.FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("new", TensorProto.FLOAT, [1, 4]),
        ],
    )
    return _model(
        [helper.make_node("Loop", ["rounds", "true", "x"], ["y"], body=body)],
        [("x", TensorProto.FLOAT, [1, 4])],
        [("y", TensorProto.FLOAT, [1, 4])],
        {"rounds": np.array(4 * 10**18), "true": np.array(True)},
        None,
    )


def save_bytes(data: bytes, repository: Path, name: str, version: int = 1) -> Path:
    """Put any file into the place of a model, whole or not at all."""
    folder = repository / name / str(version)
    if folder.exists():
        (folder / "part").write_bytes(data)
        return (folder / "part").rename(folder / "model.onnx")
    # With its folders: a server that looked into an empty one would say so, and for a while nothing else.
    repository.mkdir(parents=True, exist_ok=True)
    new = folder if folder.parent.exists() else folder.parent
    with TemporaryDirectory(dir=repository.parent) as made:
        part = Path(made) / new.name
        file = part / folder.relative_to(new) / "model.onnx"
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        part.rename(new)
    return folder / "model.onnx"


def save(model: onnx.ModelProto, repository: Path, name: str, version: int = 1) -> Path:
    """Put a model into a repository, whole or not at all."""
    return save_bytes(model.SerializeToString(), repository, name, version)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[str | int]]],
    outputs: list[tuple[str, int, list[str | int]]],
    constants: dict[str, np.ndarray],
    document: Document | None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if document is not None:
        helper.set_model_props(model, {metadata.KEY: metadata.encode(document)})
    onnx.checker.check_model(model)
    return model


def surroundings(kind: str = "tiled", side: int | None = None, confidence: bool = True) -> onnx.ModelProto:
    """RGB images to four classes, by their surroundings: a 5x5 convolution, halved, doubled, a 3x3 convolution.

    `tiled` accepts even sides and says its receptive field, `unknown` does not say it, `global` adds the mean over the
    image; with `side` all images have that size.
    """
    random = np.random.default_rng(3)
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "wide"], ["first"], pads=[2, 2, 2, 2]),
        helper.make_node("GlobalAveragePool", ["first"], ["mean"]),
        helper.make_node("Mul", ["mean", "share"], ["shared"]),
        helper.make_node("Add", ["first", "shared"], ["seen"]),
        helper.make_node("MaxPool", ["seen"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["half", "up"], ["twice"], strides=[2, 2]),
        helper.make_node("Conv", ["twice", "last"], ["scores"], pads=[1, 1, 1, 1]),
        helper.make_node("ArgMax", ["scores"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=1),
        helper.make_node("ReduceMax", ["shares", "axis"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "steps"], ["stepped"]),
        helper.make_node("Cast", ["stepped"], ["confidence"], to=TensorProto.UINT8),
    ]
    if kind != "global":
        nodes = [
            node for node in nodes if node.op_type not in ("GlobalAveragePool", "Add") and node.output[0] != "shared"
        ]
        nodes[3].input[0] = "first"
    context = Context(before=5, after=5, stride=2)
    document = Document(
        task="segmentation",
        labels=["sand", "rock", "water", "ice"],
        palette=[(200, 180, 90), (90, 90, 90), (0, 80, 200), (240, 250, 255)],
        input=InputSpec(colour="RGB", multiple=2, fit="pad")
        if side is None
        else InputSpec(colour="RGB", height=side, width=side),
        receptive_field={
            "tiled": ReceptiveField(height=context, width=context),
            "global": ReceptiveField(),
            "unknown": None,
        }[kind],
    )
    return _model(
        nodes,
        [("image", TensorProto.UINT8, ["N", side or "H", side or "W", 3])],
        [
            (name, TensorProto.UINT8, ["N", side or "H", side or "W"])
            for name in ("mask", "confidence")[: 1 + confidence]
        ],
        {
            "wide": random.normal(0, 0.01, (4, 3, 5, 5)).astype(np.float32),
            "up": random.normal(0, 0.5, (4, 4, 2, 2)).astype(np.float32),
            "last": random.normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32),
            "share": np.full(1, 3, np.float32),
            "axis": np.array([1], np.int64),
            "steps": np.full(1, 255, np.float32),
        },
        document,
    )
