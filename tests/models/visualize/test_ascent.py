import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from convoy.models.errors import BadView
from convoy.models.settings import AscentSettings, Space
from convoy.models.visualize import activation_maximization, hooks
from convoy.models.visualize.activation_maximization import (
    Optimised,
    Options,
    class_images,
    confidences,
    frames,
    log_odds,
    neurons,
    probability,
    responses,
)
from convoy.models.visualize.ascent import ascend, noise, response
from convoy.models.visualize.subjects import Subject, as_pictures
from tests.models.visualize.handmade import Blind, CornerReader, OneFilter, subject

SIDE = 9
STRAIGHT = AscentSettings(steps=40, rate=0.03, jitter=0, blur=0.0, space="pixels")
STRAIGHT_ONCE = AscentSettings(steps=1, rate=0.03, jitter=0, blur=0.0, space="pixels")


def gabor(angle: float) -> Tensor:
    """A striped filter (SIDE, SIDE) of mean 0."""
    row, column = torch.meshgrid(torch.arange(SIDE) - 4.0, torch.arange(SIDE) - 4.0, indexing="ij")
    along = column * torch.cos(torch.tensor(angle)) + row * torch.sin(torch.tensor(angle))
    wave = torch.cos(along * 1.2) * torch.exp(-(row**2 + column**2) / 16)
    return wave - wave.mean()


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


FILTERS = torch.stack([gabor(0.0), gabor(1.57)])[:, None]


def grown(
    seen: Subject, channels: list[int], climb: AscentSettings = STRAIGHT, seed: int = 0, film: bool = False
) -> Optimised:
    layer = hooks.layers(seen, seen.size())[0]
    return neurons(seen, layer, channels, seen.size(), climb, Options(seed, lambda: None, film))


@pytest.mark.parametrize("space", ["pixels", "frequency"])
def test_maximum_response_picture_is_the_filter_itself_where_there_is_one_place(space: Space) -> None:
    seen = subject(OneFilter(FILTERS), SIDE)
    climb = AscentSettings(
        steps=30, rate=0.01, jitter=0, blur=0.0, space=space
    )  # not so far that black and white cut it off
    pictures = as_pictures(*grown(seen, [0, 1], climb).images)[..., 0]
    least = 0.9 if space == "pixels" else 0.6  # coarse structure goes ahead of fine
    for own, other in ((0, 1), (1, 0)):
        assert correlation(pictures[own], FILTERS[own, 0]) > least
        assert abs(correlation(pictures[own], FILTERS[other, 0])) < 0.4


def test_picture_is_of_the_filter_and_not_of_its_opposite() -> None:
    seen = subject(OneFilter(-FILTERS), SIDE)
    climb = AscentSettings(steps=30, rate=0.01, jitter=0, blur=0.0, space="pixels")
    picture = as_pictures(*grown(seen, [0], climb).images)[0, ..., 0]
    assert correlation(picture, FILTERS[0, 0]) < -0.9


@pytest.mark.parametrize("space", ["pixels", "frequency"])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_filter_of_one_colour_makes_that_colour(space: Space, channel: int) -> None:
    filters = torch.zeros(1, 3, 3, 3)
    filters[:, channel] = 1.0
    climb = AscentSettings(steps=10, rate=0.03, jitter=0, blur=0.0, space=space)
    picture = as_pictures(*grown(subject(OneFilter(filters), 8, "RGB"), [0], climb).images)[0]
    means = picture.mean(dim=(0, 1)).tolist()
    own = means.pop(channel)
    assert own > max(means) + 0.03


def test_response_that_is_reached_is_above_that_of_the_noise() -> None:
    seen = subject(OneFilter(FILTERS), 16)
    layer = hooks.layers(seen, seen.size())[0]
    start = noise([(0, 1, 0)], (16, 16), [0.5], STRAIGHT)
    begun = float(response(hooks.outputs_of(seen, ["conv"], start)["conv"][:, 0]))
    assert responses(seen, layer, [0], grown(seen, [0]).images)[0] > 5 * begun


def test_response_is_the_norm_of_what_is_positive_or_else_the_largest() -> None:
    answer = torch.tensor([[3.0, 4.0, -100.0], [-3.0, -1.0, -2.0], [0.0, 0.0, -1.0]], requires_grad=True)
    values = response(answer)
    assert values.tolist() == [5.0, -1.0, 0.0]
    (gradient,) = torch.autograd.grad(values.sum(), answer)
    assert torch.isfinite(gradient).all()
    assert gradient[1].tolist() == [0.0, 1.0, 0.0]


def test_channel_gets_the_same_picture_whatever_others_are_grown() -> None:
    seen = subject(OneFilter(FILTERS), 16)
    alone, together = grown(seen, [1]).images[0], grown(seen, [0, 1]).images[1]
    assert abs(alone.astype(int) - together.astype(int)).max() <= 1


def test_same_seed_gives_the_same_pictures_and_another_seed_others() -> None:
    seen = subject(OneFilter(FILTERS), 16)
    climb = AscentSettings(steps=5, rate=0.03, jitter=3, blur=0.5, space="frequency")
    first, again, other = (grown(seen, [0], climb, seed).images[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_step_changes_a_picture_by_the_rate() -> None:
    start = torch.full((2, 16, 16, 1), 0.5)
    (after,) = ascend(start, lambda pictures: (pictures**2).sum(dim=(1, 2, 3)), STRAIGHT_ONCE, (0,))
    assert torch.allclose((after - start).square().mean(dim=(1, 2, 3)).sqrt(), torch.full((2,), 0.03))


def test_picture_without_a_way_up_stays_as_it_is() -> None:
    start = torch.rand(1, 8, 8, 1)
    (after,) = ascend(start, lambda pictures: 0 * pictures.sum(dim=(1, 2, 3)), STRAIGHT_ONCE, (0,))
    assert torch.equal(after, start)


def test_blur_leaves_less_fine_structure() -> None:
    def roughness(blur: float) -> float:
        climb = AscentSettings(steps=40, rate=0.03, jitter=0, blur=blur, space="pixels")
        picture = as_pictures(*grown(subject(OneFilter(FILTERS), 24), [0], climb).images)[0]
        return float(picture.diff(dim=0).abs().mean() + picture.diff(dim=1).abs().mean())

    assert roughness(1.5) < 0.7 * roughness(0.0)


def test_frequency_space_begins_and_goes_coarser_than_pixels() -> None:
    def fine_share(picture: Tensor) -> float:
        return float(picture.diff(dim=1).square().mean() / picture.var())

    climbs = (STRAIGHT, replace(STRAIGHT, space="frequency"))
    pixels, frequency = (noise([(0,)], (32, 32), [0.5], climb)[0] for climb in climbs)
    assert fine_share(frequency) < 0.6 * fine_share(pixels)


def test_jitter_shifts_what_the_network_sees() -> None:
    seen: list[Tensor] = []

    def score(pictures: Tensor) -> Tensor:
        seen.append(pictures.detach())
        return pictures.sum(dim=(1, 2, 3))

    start = torch.rand(1, 8, 8, 1)
    list(ascend(start, score, AscentSettings(steps=8, rate=0.0, jitter=3, blur=0.0, space="pixels"), (0,)))
    assert len({tuple(each.flatten().tolist()) for each in seen}) > 3
    assert all(torch.equal(each.sort(dim=1)[0].sort(dim=2)[0].sum().round(), start.sum().round()) for each in seen)


def test_class_images_reach_the_class() -> None:
    seen = subject(CornerReader(), 16)
    images = class_images(seen, [0, 1], (16, 16), STRAIGHT, Options(0, lambda: None, False)).images
    assert min(confidences(seen, [0, 1], images)) > 0.99
    assert max(confidences(seen, [1, 0], images)) < 0.01
    assert images[0][:8, :8].mean() < 20
    assert images[1][:8, :8].mean() > 235
    assert abs(images[1][8:].mean() - 127) < 10


def test_confidence_of_a_network_that_sees_nothing_is_what_it_always_is() -> None:
    seen = subject(Blind(), 8)
    images = class_images(seen, [0, 1], (8, 8), STRAIGHT, Options(0, lambda: None, False)).images
    assert confidences(seen, [0, 1], images) == pytest.approx([0.26894, 0.73106], abs=1e-4)


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = torch.randn(4, 5, 3, 2)
    classes = torch.tensor([0, 4, 2, 2])
    expected = torch.stack([logits.softmax(dim=1)[place, index] for place, index in enumerate(classes)])
    assert torch.allclose(probability(logits, classes), expected, atol=1e-6)
    assert torch.allclose(log_odds(logits, classes), (expected / (1 - expected)).log(), atol=1e-4)


def test_single_class_has_nothing_to_be_told_from() -> None:
    seen = subject(OneFilter(FILTERS[:1]), 16, labels=("thing",))
    with pytest.raises(BadView, match="only one class"):
        class_images(seen, [0], (16, 16), STRAIGHT, Options(0, lambda: None, False))


def test_film_ends_with_the_picture_and_ticks_come_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_maximization, "BATCH_PIXELS", 16 * 16)  # one at a time
    seen = subject(OneFilter(FILTERS), 16)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    layer = hooks.layers(seen, seen.size())[0]
    found = neurons(seen, layer, [0, 1], (16, 16), STRAIGHT, Options(0, tick, True))
    assert ticks == activation_maximization.ticks(2, (16, 16), STRAIGHT.steps) == 80
    assert [len(images) for images in found.film] == [2] * 24
    assert all((last == image).all() for last, image in zip(found.film[-1], found.images, strict=True))


@pytest.mark.parametrize(("steps", "film", "count"), [(1, True, 1), (7, True, 7), (1000, True, 24), (1000, False, 1)])
def test_frames_are_no_more_than_a_film_takes_and_hold_the_last_step(steps: int, film: bool, count: int) -> None:
    kept = frames(steps, film)
    assert len(kept) == len(set(kept)) == count
    assert kept[-1] == steps - 1
