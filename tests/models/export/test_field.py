"""A file says what its masks depend on: computed, checked in onnxruntime, and never claimed where it does not hold."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec import convert
from msgspec.structs import asdict
from onnx import NodeProto, TensorProto, helper, numpy_helper

from convoy.models import checkpoint, registry, zoo
from convoy.models.checkpoint import Description
from convoy.models.errors import ParityRefused
from convoy.models.export import field
from convoy.models.export.export import onnx_graph
from convoy.models.export.precision import half_precision
from convoy.service import metadata
from convoy.service.client.results import ReceptiveField as Seen
from convoy.service.client.tiling import HALO, plan
from convoy.service.metadata import Context, Document, InputSpec, ReceptiveField
from tests.service.client.test_tiling import model as served_model

PAGE = Path(__file__).parents[3] / "docs" / "large-pictures.md"
SEGMENTERS = sorted(name for name, row in registry.ARCHITECTURES.items() if row.task == "segmentation")
# Before and after a pixel, and the stride; None: the network uses the whole image.
KNOWN = {
    "unet": (51, 8),
    "fcn32s": (233, 32),
    "fcn16s": (241, 32),
    "fcn8s": (245, 32),
    "segnet": (211, 32),
    "deeplab_v3": None,
}


def graph_of(*layers: NodeProto, multiple: int = 1, maps: int = 8) -> tuple[onnx.ModelProto, Document]:
    """A 3x3 convolution, these nodes from "before" to "after", another 3x3 convolution, and the largest of four."""
    random = np.random.default_rng(0)
    weights = {
        "first": random.normal(0, 0.01, (maps, 3, 3, 3)),
        "wide": random.normal(0, 0.1, (maps, maps, 3, 5)),
        "three": random.normal(0, 0.1, (maps, maps, 3, 3)),
        "up": random.normal(0, 0.5, (maps, maps, 2, 2)),
        "last": random.normal(0, 0.1, (4, maps, 3, 3)),
        "ones": np.ones(maps),
        "zeros": np.zeros(maps),
        "twice": np.array([1, 1, 2, 2]),
    }
    names = ["before", "after"] if layers else ["before", "before"]
    nodes = [
        helper.make_node("Transpose", ["image"], ["first_image"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["first_image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["floats", "first"], [names[0]], pads=[1, 1, 1, 1]),
        *layers,
        helper.make_node("Conv", [names[1], "last"], ["scores"], pads=[1, 1, 1, 1]),
        helper.make_node("ArgMax", ["scores"], ["largest"], axis=1, keepdims=0),
        helper.make_node("Cast", ["largest"], ["mask"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", "H", "W"])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    spec = InputSpec(colour="RGB", fit="pad", multiple=multiple)
    return model, Document(task="segmentation", labels=list("abcd"), input=spec)


def both(before: int, after: int, stride: int) -> ReceptiveField:
    context = Context(before=before, after=after, stride=stride)
    return ReceptiveField(height=context, width=context)


def convolution(name: str = "three", **attributes: object) -> NodeProto:
    return helper.make_node("Conv", ["before", name], ["after"], **{"pads": [1, 1, 1, 1]} | attributes)


HALVED = helper.make_node("MaxPool", ["before"], ["half"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
DOUBLED = helper.make_node("ConvTranspose", ["half", "up"], ["after"], strides=[2, 2])


def scaled(mode: str, transformation: str) -> NodeProto:
    return helper.make_node(
        "Resize", ["half", "", "twice"], ["after"], mode=mode, coordinate_transformation_mode=transformation
    )


def to_size(transformation: str = "half_pixel") -> list[NodeProto]:
    """Halves, and scales up to the size of before."""
    return [
        HALVED,
        helper.make_node("Shape", ["before"], ["size"]),
        helper.make_node(
            "Resize", ["half", "", "", "size"], ["after"], mode="linear", coordinate_transformation_mode=transformation
        ),
    ]


PLACES = [  # adds the number of the row, as coordinate convolutions do
    helper.make_node("Shape", ["before"], ["height"], start=2, end=3),
    helper.make_node("Squeeze", ["height"], ["rows"]),
    helper.make_node("Constant", [], ["none"], value=numpy_helper.from_array(np.int64(0))),
    helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.int64(1))),
    helper.make_node("Constant", [], ["form"], value=numpy_helper.from_array(np.array([1, 1, -1, 1]))),
    helper.make_node("Range", ["none", "rows", "one"], ["places"]),
    helper.make_node("Reshape", ["places", "form"], ["column"]),
    helper.make_node("Cast", ["column"], ["numbers"], to=TensorProto.FLOAT),
    helper.make_node("Add", ["before", "numbers"], ["after"]),
]
SMALL = {
    "alone": ([], 1, both(2, 2, 1)),
    "convolution": ([convolution()], 1, both(3, 3, 1)),
    "dilated": (
        [convolution("wide", pads=[2, 4, 2, 4], dilations=[2, 2])],
        1,
        ReceptiveField(height=Context(before=4, after=4, stride=1), width=Context(before=6, after=6, stride=1)),
    ),
    "uneven": (
        [convolution(pads=[2, 0, 0, 2])],
        1,
        ReceptiveField(height=Context(before=4, after=2, stride=1), width=Context(before=2, after=4, stride=1)),
    ),
    "transposed": ([HALVED, DOUBLED], 2, both(3, 3, 2)),
    "nearest": ([HALVED, scaled("nearest", "asymmetric")], 2, both(3, 3, 2)),
    "linear": ([HALVED, scaled("linear", "half_pixel")], 2, both(4, 4, 2)),
    "to size": (to_size(), 2, both(4, 4, 2)),
    # Of an odd side, no whole number of pixels becomes one.
    "to any size": (to_size(), 1, ReceptiveField()),
    "aligned corners": (to_size("align_corners"), 2, ReceptiveField()),
    "pooling": (
        [
            helper.make_node("GlobalAveragePool", ["before"], ["mean"]),
            helper.make_node("Add", ["before", "mean"], ["after"]),
        ],
        1,
        ReceptiveField(),
    ),
    "instance norm": (
        [helper.make_node("InstanceNormalization", ["before", "ones", "zeros"], ["after"])],
        1,
        ReceptiveField(),
    ),
    "places": (PLACES, 1, ReceptiveField(width=Context(before=2, after=2, stride=1))),
}


@pytest.mark.parametrize("name", SMALL)
def test_field_is_what_the_layers_add_up_to(name: str) -> None:
    layers, multiple, expected = SMALL[name]
    assert field.of_mask(*graph_of(*layers, multiple=multiple)) == expected


def test_unknown_operation_leaves_the_field_unknown() -> None:
    node = helper.make_node("Own", ["before"], ["after"], domain="own")
    assert field.of_mask(*graph_of(node)) is None


@pytest.mark.parametrize("wrong", [{"before": 2}, {"after": 2}])
def test_field_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, int]) -> None:
    right = Context(before=3, after=3, stride=1)
    small = Context(**{"before": 3, "after": 3, "stride": 1} | wrong)
    monkeypatch.setattr(field, "computed", lambda *_: [small, right])
    with pytest.raises(ParityRefused, match=r"too small along its height: [0-9]+ values depend on pixels outside"):
        field.of_mask(*graph_of(convolution()))


def test_stride_that_is_too_small_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field, "computed", lambda *_: [Context(before=5, after=5, stride=1)] * 2)
    assert field.of_mask(*graph_of(HALVED, DOUBLED)) == ReceptiveField()


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Description, onnx.ModelProto]]:
    folder = tmp_path_factory.mktemp("networks")

    def network(name: str) -> tuple[Description, onnx.ModelProto]:
        path = folder / f"{name}.ckpt"
        zoo.untrained(name, path, 4, arguments={"width": 8})
        description, loaded = checkpoint.load(path)
        return description, onnx_graph(description, loaded)

    return network


def test_page_lists_every_network_with_its_field() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\d*) ?\| (\d+)", PAGE.read_text(), re.MULTILINE)
    halos = {name: known and -(-known[0] // known[1]) * known[1] for name, known in KNOWN.items()}
    assert {name: row for name, *row in rows} == {
        name: ["all", "", str(HALO)] if known is None else [str(known[0]), str(known[1]), str(halos[name])]
        for name, known in KNOWN.items()
    }
    assert set(SEGMENTERS) == set(KNOWN)


@pytest.mark.parametrize("name", [name for name in SEGMENTERS if name == "unet"])
def test_architecture_has_its_field_in_every_precision(
    name: str, networks: Callable[[str], tuple[Description, onnx.ModelProto]]
) -> None:
    description, graph = networks(name)
    document = Document(task="segmentation", labels=description.labels, input=description.input)
    expected = both(KNOWN[name][0], *KNOWN[name])
    assert field.of_mask(graph, document) == expected
    assert_tiles_have_the_mask_of_the_whole(graph, document, expected, ((264, 320, 152), (160, 504, 208)))
    if name == "unet":
        images = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64, 3), np.uint8)
        half = half_precision(graph, ({"image": image} for image in images))
        assert field.of_mask(half, document) == expected


def assert_tiles_have_the_mask_of_the_whole(
    graph: onnx.ModelProto, document: Document, seen: ReceptiveField, sizes: tuple[tuple[int, int, int], ...]
) -> None:
    """sizes  height and width of pictures, and the side of their tiles"""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    served = convert({"height": asdict(seen.height), "width": asdict(seen.width)}, Seen)
    model = served_model(served, document.image.multiple)
    for height, width, side in sizes:
        random = np.random.default_rng(height)
        squares = random.integers(0, 200, (height // 16 + 1, width // 16 + 1, 3)).repeat(16, axis=0).repeat(16, axis=1)
        image = (squares[:height, :width] + random.integers(0, 56, (height, width, 3))).astype(np.uint8)
        (whole,) = session.run(["mask"], {"image": image[None]})
        mask = np.full((height, width), 255, np.uint8)
        found = plan(height, width, model, side)
        assert found.exact
        assert len(found) > 1
        for tile in found.tiles():
            rows, columns = tile.rows, tile.columns
            window = image[None, rows.start : rows.stop, columns.start : columns.stop]
            (part,) = session.run(["mask"], {"image": window})
            mask[rows.first : rows.last, columns.first : columns.last] = part[
                0, rows.first - rows.start : rows.last - rows.start, columns.first - columns.start :
            ][:, : columns.last - columns.first]
        assert (mask == whole[0]).all(), (height, width, side, int((mask != whole[0]).sum()))
        assert len(np.unique(mask)) > 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in SEGMENTERS if name != "unet"])
def test_architecture_that_takes_long_to_export_has_its_field(
    name: str, networks: Callable[[str], tuple[Description, onnx.ModelProto]]
) -> None:
    description, graph = networks(name)
    document = Document(task="segmentation", labels=description.labels, input=description.input)
    known = KNOWN[name]
    expected = ReceptiveField() if known is None else both(known[0], *known)
    assert field.of_mask(graph, document) == expected
    if known is not None:
        sizes = ((1000, 1200, 640), (1111, 837, 768), (600, 1500, 672), (801, 1001, 704))
        assert_tiles_have_the_mask_of_the_whole(graph, document, expected, sizes)


def test_file_without_a_field_is_still_read() -> None:
    document = Document(task="segmentation", labels=["a"], input=InputSpec(colour="L", fit="pad"))
    assert "receptive_field" in metadata.encode(document)
    older = metadata.encode(document).replace(',"receptive_field":null', "")
    assert metadata.decode({metadata.KEY: older}) == document


def test_mask_of_a_fixed_size_has_no_field() -> None:
    graph, document = graph_of()
    fixed = Document(task="segmentation", labels=document.labels, input=InputSpec(colour="RGB", height=64, width=64))
    assert field.of_mask(graph, fixed) is None
