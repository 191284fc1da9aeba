"""`convoy adopt-weights` takes a file whole or says in one line why not. The files are made as Keras makes them."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from convoy.models import checkpoint, registry
from convoy.models.errors import BadWeights
from convoy.models.pretrained import weights
from convoy.models.pretrained.keras_file import read
from convoy.models.pretrained.registry import PREPROCESSING
from convoy.service import cli

CLASSES = 6
Saved = dict[str, list[list[NDArray[np.float32]]]]  # arrays of each layer, by the snake case of its class


@pytest.fixture
def network() -> nn.Module:
    """A narrow MobileNet whose every number is drawn."""
    torch.manual_seed(5)
    network = registry.build("mobilenet", channels=3, classes=CLASSES, arguments={"alpha": 0.25})
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "norm" in name and tensor.ndim:
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return network.eval()


def layer(module: nn.Module) -> tuple[str, list[NDArray[np.float32]]] | None:
    """The snake case of its class in Keras and its arrays there; None for what has none."""
    match module:
        case nn.Conv2d():
            depthwise = module.groups > 1
            kernel = module.weight.permute((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
            tensors = [kernel, *([] if module.bias is None else [module.bias])]
            kind = "depthwise_conv2d" if depthwise else "conv2d"
        case nn.BatchNorm2d():
            tensors = [module.weight, module.bias, module.running_mean, module.running_var]
            kind = "batch_normalization"
        case _:
            return None
    return kind, [tensor.detach().numpy() for tensor in tensors]


def saved(network: nn.Module) -> Saved:
    """What Keras would save of it."""
    layers: Saved = {}
    for kind, arrays in filter(None, map(layer, network.modules())):
        layers.setdefault(kind, []).append(arrays)
    return layers


def write(path: Path, layers: Saved) -> Path:
    """`.weights.h5`: HDF5 lists groups by their text, so that conv2d_10 stands before conv2d_2."""
    with h5py.File(path, "w") as file:
        for kind, found in layers.items():
            for number, arrays in enumerate(found):
                variables = file.create_group(f"layers/{kind}{f'_{number}' if number else ''}/vars")
                variables.attrs["name"] = f"my_{kind}_{number}"
                for index, array in enumerate(arrays):
                    variables[str(index)] = array
        file.create_group("layers/re_lu/vars").attrs["name"] = "without_weights"
        file["optimizer/vars/0"] = np.zeros(3)
    return path


def write_legacy(path: Path, network: nn.Module) -> Path:
    """The older form, with the list of layers in two pieces, as a long one is."""
    names = []
    with h5py.File(path, "w") as file:
        for _, arrays in filter(None, map(layer, network.modules())):
            names.append(f"layer{len(names)}")
            group = file.create_group(names[-1])
            inside = [f"{names[-1]}/{index}:0" for index in range(len(arrays))]
            group.attrs["weight_names"] = [text.encode() for text in inside]
            for text, array in zip(inside, arrays, strict=True):
                group[text] = array
        file.attrs["layer_names0"] = [text.encode() for text in names[:20]]
        file.attrs["layer_names1"] = [text.encode() for text in names[20:]]
    return path


def adopt(path: Path) -> weights.Adopted:
    return weights.adopt("mobilenet", path, size=(64, 64), arguments={"alpha": 0.25})


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_every_number_of_a_file_reaches_its_place(network: nn.Module, tmp_path: Path) -> None:
    adopted = adopt(write(tmp_path / "a.weights.h5", saved(network)))
    assert same(adopted.network, network)
    assert not adopted.network.training
    assert adopted.library == "Keras"


def test_legacy_file_is_read_in_the_order_of_its_list(network: nn.Module, tmp_path: Path) -> None:
    assert same(adopt(write_legacy(tmp_path / "a.h5", network)).network, network)


def test_classes_are_as_many_as_the_file_has_and_named_by_number(network: nn.Module, tmp_path: Path) -> None:
    description = adopt(write(tmp_path / "a.weights.h5", saved(network))).description
    assert description.labels == [f"class {index}" for index in range(CLASSES)]
    assert description.data == ""


def test_pixels_are_those_of_the_published_weights(network: nn.Module, tmp_path: Path) -> None:
    description = adopt(write(tmp_path / "a.weights.h5", saved(network))).description
    assert (description.mean, description.std, description.channel_order) == ([0.5] * 3, [0.5] * 3, "RGB")


Change = Callable[[Saved], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "transposed": (
        lambda layers: layers["conv2d"].__setitem__(3, [np.zeros((1, 1, 64, 32), np.float32)]),
        "layer 'my_conv2d_3' of the file is 1x1x64x32, want 1x1x32x32 for body.2.pointwise.conv",
    ),
    "without scale": (
        lambda layers: layers["batch_normalization"][4].pop(0),
        "layer 'my_batch_normalization_4' of the file is 32 32 32, want 32 32 32 32 for body.1.pointwise.norm",
    ),
    "missing": (
        lambda layers: layers["depthwise_conv2d"].pop(),
        "the file has no depthwise_conv2d layer left for body.12.depthwise.conv, want 3x3x256x1",
    ),
    "left over": (
        lambda layers: layers.update(dense=[[np.zeros((7, 2), np.float32), np.zeros(2, np.float32)]]),
        "layer 'my_dense_0' of the file, 7x2 2, has no place in this network",
    ),
    "without its top": (
        lambda layers: layers["conv2d"].pop(),
        "the file has no conv2d layer left for classifier, want 1x1x256x256 256: it was saved without its classifier",
    ),
    "without any convolution": (
        lambda layers: layers.pop("conv2d"),
        "the file has no conv2d layer: it was saved without its classifier, want include_top=True",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_layer_that_does_not_fit_is_named_with_both_shapes(change: str, network: nn.Module, tmp_path: Path) -> None:
    layers = saved(network)
    alter, message = CHANGES[change]
    alter(layers)
    with pytest.raises(BadWeights) as refused:
        adopt(write(tmp_path / "a.weights.h5", layers))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tensor_that_does_not_fit_is_named_with_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    state = {"conv1.weight": torch.zeros(64, 3, 3, 3), "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}
    for changed, message in [
        (state, "tensor 'conv1.weight' of the file is 64x3x3x3, want 64x3x7x7 for stem.conv.weight"),
        ({**state, "conv1.weight": torch.zeros(64, 3, 7, 7)}, "no tensor for stem.norm.weight, want one of 64"),
        (
            {"fc.weight": torch.zeros(2, 512), "top.weight": torch.zeros(4, 2)},
            "tensor 'top.weight' of the file, 4x2, h",
        ),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "no tensor 'fc.weight', want a whole network with its classifier"),
    ]:
        torch.save(changed, path)
        with pytest.raises(BadWeights) as refused:
            weights.adopt("resnet18", path)
        assert message in str(refused.value)


def test_file_of_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for content in (b"", b"PK\3\4 not a zip", b"\x89HDF\r\n\x1a\n cut short"):
        path.write_bytes(content)
        with pytest.raises(BadWeights):
            weights.adopt("resnet50", path)
    with h5py.File(path, "w") as file:
        file["numbers"] = np.zeros(3)
    with pytest.raises(BadWeights, match="HDF5 without layers of Keras"):
        weights.adopt("resnet50", path)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"fc.weight": Touch()}, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match="neither HDF5 nor a state dict"):
        weights.adopt("resnet50", tmp_path / "a.pth")
    assert not (tmp_path / "touched").exists()


def test_array_that_lies_in_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["array"] = np.zeros(3)
    for number, layout in enumerate(("link", "bytes")):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            variables = file.create_group("layers/dense/vars")
            if layout == "link":
                variables["0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "array")
            else:
                variables.create_dataset("0", (3,), np.float32, external=[(str(tmp_path / "secret"), 0, 12)])
        with pytest.raises(BadWeights, match="is in another file"):
            read(tmp_path / f"{number}.h5")


def test_network_within_a_network_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/functional/layers/dense/vars/0"] = np.zeros((3, 4))
    with pytest.raises(BadWeights, match="layer 'functional' of the file is a nested network, want one flat network"):
        read(tmp_path / "a.h5")


def test_adopted_weights_are_exported_with_their_preprocessing(
    network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.weights.h5"), saved(network))
    Path("labels.txt").write_text("ant\nbee\ncat\ndog\nelk\nfox\n")
    options = ["--labels", "labels.txt", "--size", "48x64", "--set", "alpha=0.25", "--preprocessing", "caffe"]
    assert cli.run(["adopt-weights", "mobilenet", "a.weights.h5", *options]) == 0
    out = capsys.readouterr().out
    assert "found       mobilenet of Keras: 220,086 numbers, 6 classes" in out
    assert "pixels      caffe: 0..255, blue first" in out

    next_command = out.splitlines()[-1].split()
    assert next_command[:2] == ["next", "convoy"]
    assert cli.run(next_command[2:]) == 0
    assert "held out  not measured" in capsys.readouterr().out
    description, _ = checkpoint.load(Path("mobilenet.ckpt"))
    assert description.labels == ["ant", "bee", "cat", "dog", "elk", "fox"]

    image = np.random.default_rng(1).integers(0, 256, (3, 48, 64, 3), np.uint8)
    session = onnxruntime.InferenceSession("repository/mobilenet/1/model.onnx", providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"image": image})
    blue_first = torch.from_numpy(image.astype(np.float32)[..., ::-1] - np.float32([103.939, 116.779, 123.68]))
    with torch.inference_mode():
        expected = torch.softmax(network(blue_first.permute(0, 3, 1, 2)), dim=1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_every_way_to_take_pixels_says_what_it_does() -> None:
    ends = {
        name: [((edge - mean) / std) for edge in (0, 1) for mean, std in zip(way.mean, way.std, strict=True)]
        for name, way in PREPROCESSING.items()
    }
    assert ends["plain"] == [0, 0, 0, 1, 1, 1]
    assert ends["symmetric"] == [-1, -1, -1, 1, 1, 1]
    assert ends["caffe"] == pytest.approx([-123.68, -116.779, -103.939, 255 - 123.68, 255 - 116.779, 255 - 103.939])
    assert PREPROCESSING["caffe"].order == "BGR"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet51", "a.weights.h5"], "architecture 'resnet51', want one of: "),
        (["unet", "a.weights.h5"], "unet is not among the networks that can be adopted from Keras: vgg16, "),
        (["mobilenet", "none.h5"], "there is no file none.h5, want weights that Keras or torchvision saved"),
        (["mobilenet", "labels.txt"], "mobilenet is not among the networks that can be adopted from torchvision"),
        (["resnet50", "labels.txt"], "labels.txt is neither HDF5 nor a state dict"),
        (["mobilenet", "a.weights.h5"], "layer 'my_conv2d_0' of the file is 3x3x3x8, want 3x3x3x32 for stem.conv"),
        (["mobilenet", "a.weights.h5", "--set", "beta=2"], "beta = '2' is no argument of mobilenet"),
        (["mobilenet", "a.weights.h5", "--size", "0"], "--size '0', want HEIGHTxWIDTH"),
        (["mobilenet", "a.weights.h5", "--preprocessing", "tf"], "'tf' is not one of 'plain', 'imagenet', 'caffe'"),
        (
            ["mobilenet", "a.weights.h5", "--set", "alpha=0.25", "--labels", "labels.txt"],
            "3 labels for a network of 6 classes, want one for each",
        ),
        (["mobilenet", "a.weights.h5", "--labels", "gap.txt"], "line 2 of labels gap.txt is empty"),
        (["mobilenet", "a.weights.h5", "--labels", "bytes.txt"], "labels bytes.txt: line 1 is not UTF-8"),
        (["mobilenet", "a.weights.h5", "--labels", "nowhere.txt"], "'nowhere.txt': No such file or directory"),
    ],
)
def test_what_cannot_be_adopted_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    network: nn.Module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.weights.h5"), saved(network))
    Path("labels.txt").write_text("ant\nbee\ncat\n")
    Path("gap.txt").write_text("ant\n\ncat\n")
    Path("bytes.txt").write_bytes("café".encode("latin-1"))
    assert cli.run(["adopt-weights", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not Path("mobilenet.ckpt").exists()
