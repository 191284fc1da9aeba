import pytest
import torch

from convoy.models.errors import BadView
from convoy.models.visualize import hooks, selection
from convoy.models.visualize.subjects import ImageSubject
from tests.models.visualize.handmade import BrightPixels, SpotFinder, spot, subject


def lenet() -> ImageSubject:
    from convoy.models.registry import build

    return subject(build("lenet5", 1, 10), 32, labels=tuple("0123456789"))


def test_layers_come_in_the_order_in_which_they_are_done_with_their_shapes() -> None:
    found = hooks.layers(lenet(), (32, 32))
    assert [layer.name for layer in found] == ["c1", "s2", "c3", "s4", "c5", "f6", "output"]
    assert [found[place].shape for place in (0, 3, 6)] == [(6, 28, 28), (16, 5, 5), (10,)]
    assert [found[place].is_map for place in (3, 5)] == [True, False]


def test_layer_that_is_not_there_is_refused_with_near_ones_first() -> None:
    there = hooks.layers(lenet(), (32, 32))
    with pytest.raises(BadView, match=r"no layer 'outptu'; there are output, c1, s2"):
        hooks.layer_of("outptu", there)


def test_refusal_of_a_layer_tells_how_many_more_there_are() -> None:
    from convoy.models.registry import build

    seen = subject(build("unet", 3, 5, {"width": 2, "depth": 2}), None, "RGB", task="segmentation")
    there = hooks.layers(seen, (16, 16))
    with pytest.raises(BadView, match=rf"'bottm'; there are bottom.* and {len(there) - hooks.NEAR} more, which"):
        hooks.layer_of("bottm", there)


def test_answer_is_what_a_layer_said_before_a_rectifier_wrote_over_it() -> None:
    seen = subject(SpotFinder(), 24)
    answer = hooks.outputs_of(seen, ["conv", "relu"], spot(8, 8))
    assert float(answer["conv"].min()) < 0
    assert float(answer["relu"].min()) == 0
    assert torch.equal(answer["conv"].clamp(min=0), answer["relu"])


def test_layers_before_the_one_that_minds_take_other_sizes() -> None:
    seen = lenet()
    pictures = torch.rand(1, 48, 40, 1)
    assert hooks.outputs_of(seen, ["c1"], pictures)["c1"].shape == (1, 6, 44, 36)
    with pytest.raises(BadView, match="handmade does not accept images of 48x40, only such as 32x32"):
        hooks.logits(seen, pictures)


def test_looking_leaves_no_hooks_behind() -> None:
    seen = subject(SpotFinder(), 24)
    hooks.outputs_of(seen, ["conv"], spot(8, 8))
    hooks.layers(seen, (24, 24))
    assert not any(module._forward_hooks for module in seen.network.modules())


def test_pictures_of_any_size_are_padded_as_serving_pads() -> None:
    from msgspec.structs import replace

    seen = subject(BrightPixels(), None, task="segmentation", mean=0.5)
    spec = replace(seen.spec, multiple=4, fill=255)
    seen = ImageSubject("handmade", replace(seen.description, input=spec), seen.network)
    entered = seen.as_input(torch.zeros(1, 5, 6, 1))
    assert entered.shape == (1, 1, 8, 8)
    assert entered[0, 0, 4, 5] == -0.5
    assert entered[0, 0, 5:].eq(0.5).all()
    assert entered[0, 0, :, 6:].eq(0.5).all()


@pytest.mark.parametrize(
    ("text", "numbers"), [("3", [3]), ("0-2", [0, 1, 2]), ("5,1,4-5", [5, 1, 4]), (None, [0, 1, 2, 3])]
)
def test_channels_are_read(text: str | None, numbers: list[int]) -> None:
    assert selection.channels(text, 6, "c1", 4) == numbers


@pytest.mark.parametrize("text", ["", "6", "2-6", "3-1", "a", "1,,2", "-1", "9999999"])
def test_channels_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(BadView, match="from 0 to 5: layer 'c1' has 6 channels"):
        selection.channels(text, 6, "c1", 4)


def test_class_is_found_by_label_then_by_number() -> None:
    labels = ["crane", "7", "crane", "owl"]
    assert selection.label("owl", labels) == 3
    assert selection.label("7", labels) == 1
    assert selection.label("2", labels) == 2
    with pytest.raises(BadView, match="is the label of classes 0 and 2"):
        selection.label("crane", labels)
    with pytest.raises(BadView, match="'owls' is not among the 4 labels, such as: owl"):
        selection.label("owls", labels)
