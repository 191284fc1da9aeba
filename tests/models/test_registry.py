"""Every row of the registry builds what it says."""

import inspect
from dataclasses import replace

import pytest
import torch

from convoy.models import registry
from convoy.models.data.registry import DATA
from convoy.models.errors import BadTraining
from convoy.models.pretrained.registry import KERAS, TORCHVISION
from convoy.models.registry import ARCHITECTURES
from convoy.service.metadata import Axis, InputSpec, TensorInput, image_tensor


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_network_answers_logits_of_its_task(name: str) -> None:
    row = ARCHITECTURES[name]
    network = registry.build(name, channels=3, classes=7).eval()
    multiple = getattr(network, "multiple", 1)
    own = [axis.size for axis in _axes(row.input) if axis.name != "channel"]
    sides = [side or factor * multiple for factor, side in enumerate(own, start=2)]
    logits = network(torch.zeros(2, 3, *sides))
    assert logits.shape == ((2, 7) if row.task == "classification" else (2, 7, *sides))


def _axes(spec: InputSpec | TensorInput) -> tuple[Axis, ...]:
    return spec.axes if isinstance(spec, TensorInput) else image_tensor(spec).axes


def test_free_input_size_follows_the_depth() -> None:
    network = registry.build("unet", channels=3, classes=2, arguments={"width": 2, "depth": 5})
    spec = registry.input_spec("unet", network, "RGB")
    assert (spec.fit, spec.multiple, spec.height) == ("pad", 32, None)


def test_row_that_names_no_class_fails_as_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(ARCHITECTURES["resnet50"], network="classification.resnet:ResNets")
    monkeypatch.setitem(ARCHITECTURES, "resnets", row)
    with pytest.raises(AttributeError, match="ResNets"):
        registry.build("resnets", channels=3, classes=7)


def test_every_default_of_a_row_is_an_argument_of_its_class() -> None:
    for row in ARCHITECTURES.values():
        taken = inspect.signature(row.network_class()).parameters
        assert {*row.fixed, *row.arguments, "channels", "classes", *(["size"] if row.sized else [])} <= set(taken)


def test_unknown_architecture_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(BadTraining, match=r"'lenet6', want one of: lenet5, .*; did you mean 'lenet5'\?"):
        registry.architecture("lenet6")


NAMED = sorted(
    {row.network for row in ARCHITECTURES.values()}
    | {f"pretrained.{row.order}" for row in KERAS.values()}
    | {f"pretrained.{row.rename}" for row in TORCHVISION.values()}
)


@pytest.mark.parametrize("path", NAMED)
def test_what_a_row_names_is_there(path: str) -> None:
    assert callable(registry.imported(path))


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("classification.resnets:ResNet", ModuleNotFoundError),
        ("classification.resnet:ResNets", AttributeError),
        ("classification.resnet", AttributeError),
    ],
)
def test_name_of_nothing_fails(path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        registry.imported(path)


@pytest.mark.parametrize("name", DATA)
def test_built_in_data_have_the_name_of_their_row(name: str) -> None:
    assert DATA[name]().name == name


@pytest.mark.parametrize("name", [*KERAS, *TORCHVISION])
def test_weights_are_adopted_for_architectures_that_there_are(name: str) -> None:
    assert name in ARCHITECTURES
