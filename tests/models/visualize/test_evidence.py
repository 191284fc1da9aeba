import numpy as np
import pytest
import torch
from torch import Tensor

from convoy.models.errors import BadView
from convoy.models.visualize import hooks, selection
from convoy.models.visualize.evidence import activation_map, highlighted, occlusion, overlay, places, target_of
from convoy.models.visualize.subjects import Subject
from tests.models.visualize.handmade import Blind, BrightPixels, CornerReader, SpotFinder, peak, spot, subject

PLACES = [(6, 6), (12, 17)]


def fall(seen: Subject, picture: Tensor, index: int | None = None, patch: int = 5) -> Tensor:
    return occlusion(seen, picture, target_of(seen, picture, index, None), patch, 2, lambda: None)


def cam(seen: Subject, picture: Tensor, index: int | None = None, at: tuple[int, int] | None = None) -> Tensor:
    layer = hooks.layer_of("conv", hooks.layers(seen, (24, 24)))
    return activation_map(seen, picture, target_of(seen, picture, index, at), layer)


@pytest.mark.parametrize("place", PLACES)
def test_occlusion_map_peaks_where_the_network_looks(place: tuple[int, int]) -> None:
    seen = subject(SpotFinder(), 24, mean=0.2)
    values = fall(seen, spot(*place))
    assert values.shape == (24, 24)
    assert np.abs(np.subtract(peak(values), place)).max() <= 2


def test_occlusion_map_is_of_the_corner_that_is_read_and_of_nothing_else() -> None:
    values = fall(subject(CornerReader(), 24), torch.full((1, 24, 24, 1), 0.9), patch=4)
    assert values[:12, :12].min() > 0
    assert values[14:].abs().max() < 1e-6
    assert values[:, 14:].abs().max() < 1e-6


def test_occlusion_map_of_the_other_class_is_the_opposite() -> None:
    seen = subject(SpotFinder(), 24, mean=0.2)
    assert torch.allclose(fall(seen, spot(8, 8), index=0), -fall(seen, spot(8, 8), index=1), atol=1e-5)


def test_occlusion_map_of_a_network_that_sees_nothing_is_empty() -> None:
    assert fall(subject(Blind(), 24), spot(8, 8)).abs().max() < 1e-6


@pytest.mark.parametrize("place", PLACES)
def test_activation_map_peaks_where_the_network_looks(place: tuple[int, int]) -> None:
    assert peak(cam(subject(SpotFinder(), 24, mean=0.2), spot(*place))) == place


def test_nothing_speaks_for_the_other_class_in_an_activation_map() -> None:
    seen = subject(SpotFinder(), 24, mean=0.2)
    layer = hooks.layer_of("relu", hooks.layers(seen, (24, 24)))
    values = activation_map(seen, spot(8, 8), target_of(seen, spot(8, 8), 0, None), layer)
    assert not values.any()


@pytest.mark.parametrize(("side", "patch", "stride"), [(10, 4, 2), (11, 4, 3), (5, 5, 5), (7, 3, 3), (3, 1, 1)])
def test_patches_cover_every_pixel_and_end_where_the_image_does(side: int, patch: int, stride: int) -> None:
    covered = np.zeros((side, side), int)
    for top, left in places((side, side), patch, stride):
        assert top + patch <= side
        assert left + patch <= side
        covered[top : top + patch, left : left + patch] += 1
    assert covered.min() >= 1
    assert len(set(places((side, side), patch, stride))) == len(places((side, side), patch, stride))


def segmenter() -> Subject:
    return subject(BrightPixels(), None, task="segmentation", labels=("background", "yes"), mean=0.6)


def test_target_of_segmentation_is_the_pixels_that_are_answered_so() -> None:
    found = target_of(segmenter(), spot(6, 6), None, None)
    assert found.label == "yes"
    assert found.where is not None
    assert peak(found.where.float()) == (6, 6)
    assert 9 <= int(found.where.sum()) <= 25


def test_evidence_for_one_pixel_is_around_it() -> None:
    seen = segmenter()
    picture = torch.maximum(spot(6, 6), spot(17, 17))
    values = occlusion(seen, picture, target_of(seen, picture, None, (17, 17)), 5, 1, lambda: None)
    assert np.abs(np.subtract(peak(values), (17, 17))).max() <= 1
    assert values[:10, :10].abs().max() < 1e-6


def test_activation_map_for_one_pixel_is_around_it_and_not_at_its_like() -> None:
    values = cam(segmenter(), torch.maximum(spot(6, 6), spot(17, 17)), at=(17, 17))
    assert peak(values) == (17, 17)
    assert not values[:12, :12].any()


def test_evidence_at_a_dark_pixel_is_for_what_it_is_answered() -> None:
    found = target_of(segmenter(), spot(6, 6), None, (20, 20))
    assert (found.label, found.where is not None and int(found.where.sum())) == ("background", 1)


def test_targets_that_are_not_there_are_refused() -> None:
    with pytest.raises(BadView, match=r"no pixel of the image is predicted as 'yes', want one of: background"):
        target_of(segmenter(), torch.full((1, 8, 8, 1), 0.1), 1, None)
    with pytest.raises(BadView, match=r"--at 24,3 is outside, want a row below 24 and a column below 24"):
        target_of(segmenter(), spot(6, 6), None, (24, 3))
    with pytest.raises(BadView, match="--at requires a segmentation network"):
        target_of(subject(SpotFinder(), 24), spot(6, 6), None, (3, 3))


def test_layer_of_the_map_is_the_last_with_places_or_the_bottleneck() -> None:
    from convoy.models.registry import build

    lenet = subject(build("lenet5", 1, 10), 32)
    assert selection.last_with_places(hooks.layers(lenet, (32, 32)), 10, per_pixel=False).name == "s4"
    unet = subject(build("unet", 3, 5, {"width": 2, "depth": 2}), None, "RGB", task="segmentation")
    assert selection.last_with_places(hooks.layers(unet, (32, 32)), 5, per_pixel=True).name == "bottom"


def test_overlay_is_red_where_it_speaks_for_and_blue_where_against() -> None:
    image = np.full((1, 3, 1), 100, np.uint8)
    drawn = overlay(image, torch.tensor([[2.0, 0.0, -1.0]])).astype(int)
    assert drawn[0, 0, 0] > 200 > drawn[0, 0, 2]
    assert drawn[0, 1].tolist() == [100, 100, 100]
    assert drawn[0, 2, 2] > drawn[0, 2, 0]
    assert overlay(image, torch.zeros(1, 3)).tolist() == np.repeat(image, 3, axis=2).tolist()


def test_pixels_that_do_not_count_are_darker() -> None:
    drawn = highlighted(np.full((1, 3, 3), 100, np.uint8), torch.tensor([[True, True, False]]))
    assert drawn[0].tolist() == [[100] * 3, [100] * 3, [35] * 3]


def test_single_pixel_is_picked_out_with_what_is_around_it() -> None:
    where = torch.zeros(48, 60, dtype=torch.bool)
    where[20, 30] = True
    drawn = highlighted(np.full((48, 60, 3), 100, np.uint8), where)[..., 0]
    assert np.argwhere(drawn == 100).min(axis=0).tolist() == [18, 28]
    assert np.argwhere(drawn == 100).max(axis=0).tolist() == [22, 32]
