"""What the tables name is there, and a name of nothing fails."""

import pytest

from convoy.models import late
from convoy.models.data.registry import DATA
from convoy.models.pretrained.registry import KERAS, TORCHVISION
from convoy.models.registry import ARCHITECTURES

NAMED = sorted(
    {row.network for row in ARCHITECTURES.values()}
    | {f"pretrained.{row.order}" for row in KERAS.values()}
    | {f"pretrained.{row.rename}" for row in TORCHVISION.values()}
)


@pytest.mark.parametrize("path", NAMED)
def test_what_a_row_names_is_there(path: str) -> None:
    assert callable(late.named(path))


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
        late.named(path)


@pytest.mark.parametrize("name", DATA)
def test_built_in_data_have_the_name_of_their_row(name: str) -> None:
    assert DATA[name]().name == name


@pytest.mark.parametrize("name", [*KERAS, *TORCHVISION])
def test_weights_are_adopted_for_architectures_that_there_are(name: str) -> None:
    assert name in ARCHITECTURES
