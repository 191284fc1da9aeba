"""Weights that Keras saved give our networks Keras' answers: the same network built twice, by two hands."""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from convoy.models.export.export import onnx_graph
from convoy.models.graph import Pixels, served
from convoy.models.pretrained import keras_file, weights
from convoy.models.pretrained.registry import KERAS, PREPROCESSING, PixelForm

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' own
]

CLASSES = 10
IMAGES = 4
TOLERANCE = 1e-4  # of how far the answers to different images are apart, which is less than the largest logit
APART = 0.05  # of the largest logit: how far the answers are apart at least, from image to image and class to class


@dataclass(frozen=True)
class Twin:
    """A network of ours and its name in keras.applications; `options` are what Keras' function takes besides."""

    name: str
    theirs: str
    size: tuple[int, int] = (64, 96)
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


TWINS = [
    Twin("vgg16", "VGG16"),
    Twin("vgg19", "VGG19", size=(33, 65)),
    Twin("resnet50", "ResNet50"),
    Twin("resnet101", "ResNet101"),
    Twin("resnet152", "ResNet152"),
    Twin("densenet121", "DenseNet121"),
    Twin("densenet169", "DenseNet169"),
    Twin("densenet201", "DenseNet201"),
    Twin("xception", "Xception", size=(71, 76)),
    Twin("inception_v3", "InceptionV3", size=(75, 107)),
    Twin("inception_resnet_v2", "InceptionResNetV2", size=(75, 107)),
    Twin("mobilenet", "MobileNet"),
    Twin("mobilenet", "MobileNet", size=(75, 101), options={"alpha": 0.5}, arguments={"alpha": 0.5}),
]


def save_weights(model: Any, folder: Path) -> Path:
    path = folder / "network.weights.h5"
    model.save_weights(path)
    return path


def save_whole(model: Any, folder: Path) -> Path:
    path = folder / "network.h5"
    model.save(path)
    return path


def save_legacy_weights(model: Any, folder: Path) -> Path:
    from keras.src.legacy.saving import legacy_h5_format  # the published files have this form; Keras 3 only reads it

    path = folder / "legacy.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


PUBLISHED = "legacy"
FORMATS: dict[str, Callable[[Any, Path], Path]] = {
    "weights": save_weights,
    "whole": save_whole,
    PUBLISHED: save_legacy_weights,
}
# They consist of the same layers as a shallower network, which is saved in all forms.
DEEPER = ("vgg19", "resnet101", "resnet152", "densenet169", "densenet201")


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_network_answers_as_the_one_of_keras_whose_weights_it_takes(twin: Twin, tmp_path: Path) -> None:
    model = built(twin)
    images = pictures(twin.size)
    expected = model.predict(images, verbose=0)
    # Answers that hardly depend on the image, or are the same for all classes, would agree for many a wrong network.
    apart = np.ptp(expected, axis=0).mean()
    assert min(apart, np.ptp(expected, axis=1).min()) > APART * np.abs(expected).max()
    for form in [PUBLISHED] if twin.name in DEEPER else FORMATS:
        path = FORMATS[form](model, tmp_path)
        network = weights.adopt(twin.name, path, size=twin.size, arguments=twin.arguments).network
        path.unlink()
        assert np.abs(answers(network, images) - expected).max() <= TOLERANCE * apart


@pytest.mark.parametrize("name", sorted({twin.name for twin in TWINS}))
def test_published_weights_get_the_pixels_that_keras_prepares_for_them(name: str) -> None:
    image = np.random.default_rng(2).integers(0, 256, (2, 4, 5, 3), np.uint8)
    theirs = next(twin.theirs for twin in TWINS if twin.name == name)
    module = importlib.import_module(getattr(keras_of_torch().applications, theirs).__module__)
    expected = module.preprocess_input(image.astype(np.float32))
    ours = Pixels(*map(list, PREPROCESSING[KERAS[name].pixels][:2]), PREPROCESSING[KERAS[name].pixels].order)
    np.testing.assert_allclose(ours(torch.from_numpy(image)).permute(0, 2, 3, 1), expected, atol=1e-4)


# Every network is small here: what is asked is whether the graph in front of it does what Keras does.
@pytest.mark.parametrize(("pixels", "mode"), [("caffe", "caffe"), ("imagenet", "torch"), ("symmetric", "tf")])
def test_served_network_takes_plain_images_to_the_answers_of_keras(
    pixels: PixelForm, mode: str, tmp_path: Path
) -> None:
    twin = Twin("mobilenet", "MobileNet", options={"alpha": 0.25}, arguments={"alpha": 0.25})
    model = built(twin)
    image = np.random.default_rng(2).integers(0, 256, (IMAGES, *twin.size, 3), np.uint8)
    prepare = keras_of_torch().applications.imagenet_utils.preprocess_input
    logits = model.predict(prepare(image.astype(np.float32), mode=mode), verbose=0)

    path = save_weights(model, tmp_path)
    adopted = weights.adopt(twin.name, path, size=twin.size, arguments=twin.arguments, pixels=pixels)
    # All three are exported in the same way: one shows that their graphs answer like PyTorch.
    answer = exported(adopted) if pixels == "caffe" else in_pytorch(adopted)
    probabilities = answer(image)
    np.testing.assert_allclose(probabilities, torch.softmax(torch.from_numpy(logits), dim=1), atol=1e-5)
    assert np.abs(answer(image[..., ::-1].copy()) - probabilities).max() > 1e-3


Probabilities = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def exported(adopted: weights.Adopted) -> Probabilities:
    graph = onnx_graph(adopted.description, adopted.network).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["probabilities"], {"image": image})[0]


def in_pytorch(adopted: weights.Adopted) -> Probabilities:
    description = adopted.description
    module = served(description.task, description.normalisation(), adopted.network.eval())
    return lambda image: module(torch.from_numpy(image)).detach().numpy()


def test_two_layers_changed_for_each_other_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = TWINS[0]
    model = built(twin)
    images = pictures(twin.size)
    expected = model.predict(images, verbose=0)
    path = save_weights(model, tmp_path)
    read = keras_file.read

    def swapped(path: Path) -> keras_file.Layers:
        layers = read(path)
        queue = layers[keras_file.CONVOLUTION]
        queue[-1], queue[-2] = queue[-2], queue[-1]
        return layers

    monkeypatch.setattr(keras_file, "read", swapped)
    network = weights.adopt(twin.name, path, size=twin.size).network
    assert np.abs(answers(network, images) - expected).max() > 100 * TOLERANCE * np.ptp(expected, axis=0).mean()


def keras_of_torch() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras  # costs seconds, which only these tests shall pay

    return keras


def built(twin: Twin) -> Any:
    """The network in Keras with random weights, moving statistics too."""
    make = getattr(keras_of_torch().applications, twin.theirs)
    shape = (*twin.size, 3)
    model = make(weights=None, classes=CLASSES, input_shape=shape, classifier_activation=None, **twin.options)
    random = np.random.default_rng(7)
    for variable in model.weights:
        variable.assign(_values(random, variable.path.rsplit("/", 1)[-1], tuple(variable.shape)))
    return model


def _values(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    match name:
        case "gamma":
            values = random.uniform(0.6, 1.4, shape)
        case "moving_variance":
            values = random.uniform(0.5, 1.5, shape)
        case "bias" | "beta" | "moving_mean":
            values = random.normal(0, 0.1, shape)
        case _:
            # He et al.: signals keep their size on the way through. A kernel with one output is a depthwise one.
            inputs = np.prod(shape[:2] if shape[-1] == 1 else shape[:-1])
            values = random.normal(0, np.sqrt(2 / inputs), shape)
    return values.astype(np.float32)


def pictures(size: tuple[int, int]) -> NDArray[np.float32]:
    """(IMAGES, height, width, 3): patches of colour, each image with colours of its own, and noise."""
    random = np.random.default_rng(3)
    coarse = random.normal(0, 1, (IMAGES, 4, 4, 3)) + random.normal(0, 1, (IMAGES, 1, 1, 3))
    height, width = size
    patches = coarse.repeat(-(-height // 4), axis=1).repeat(-(-width // 4), axis=2)[:, :height, :width]
    return (patches + random.normal(0, 0.3, patches.shape)).astype(np.float32)


def answers(network: torch.nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: torch.Tensor = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    return logits.numpy()
