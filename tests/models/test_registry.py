"""Every row of the registry builds what it says."""

import pytest
import torch

from models import registry
from models.errors import BadTraining
from models.registry import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_network_answers_logits_of_its_task(name: str) -> None:
    row = ARCHITECTURES[name]
    network = registry.build(name, channels=3, classes=7).eval()
    spec = registry.input_spec(name, network, "RGB")
    height, width = spec.height or 2 * spec.multiple, spec.width or 3 * spec.multiple
    logits = network(torch.zeros(2, 3, height, width))
    assert logits.shape == ((2, 7) if row.task == "classification" else (2, 7, height, width))


def test_free_input_size_follows_the_depth() -> None:
    network = registry.build("unet", channels=3, classes=2, arguments={"width": 2, "depth": 5})
    spec = registry.input_spec("unet", network, "RGB")
    assert (spec.fit, spec.multiple, spec.height) == ("pad", 32, None)


def test_unknown_architecture_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(BadTraining, match=r"'lenet6', want one of: lenet5, "):
        registry.architecture("lenet6")
