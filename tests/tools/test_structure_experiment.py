"""The experiment on what convolutional structure is worth: its data and its networks are what they are said to be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convoy.models.analysis.summary import totals
from convoy.models.data.builtin import digits
from tools.structure_experiment import BY_DEPTH, BY_PARAMETERS, SIDE, Network, Result, draw, settings, table


def parameters(network: Network) -> int:
    return totals("pattern", (SIDE, SIDE), classes=10, channels=1, arguments=network.arguments).parameters


def test_permuted_digits_are_the_same_digits_with_all_pixels_in_one_other_order() -> None:
    plain, other = digits.load().split("test"), digits.load_permuted().split("test")
    assert len(plain) == len(other)
    stack = np.stack([plain[index][0].ravel() for index in range(40)])
    moved = np.stack([other[index][0].ravel() for index in range(40)])
    assert [plain[index][1] for index in range(40)] == [other[index][1] for index in range(40)]
    assert not np.array_equal(stack, moved)
    assert sorted(map(bytes, stack.T)) == sorted(map(bytes, moved.T))  # pixels as columns: the same ones, moved


def test_changes_to_training_images_are_made_before_the_pixels_move() -> None:
    plain, other = digits.load(), digits.load_permuted()
    assert plain.augment is not None
    assert other.augment is not None
    image, _ = plain.split("train")[0]
    moved, _ = other.split("train")[0]
    torch.manual_seed(0)
    expected = plain.augment(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    torch.manual_seed(0)
    found = other.augment(torch.from_numpy(moved).permute(2, 0, 1)[None].float())
    np.testing.assert_allclose(digits.permuted(expected.numpy()), found.numpy())


def test_networks_of_one_comparison_have_about_as_many_parameters() -> None:
    assert {network.depth for network in BY_DEPTH} == {1, 2, 3, 4}
    for network in BY_DEPTH:
        assert parameters(network) == pytest.approx(50_000, rel=0.03)
    half = len(BY_PARAMETERS) // 2
    for connected, convolved in zip(BY_PARAMETERS[:half], BY_PARAMETERS[half:], strict=True):
        assert parameters(connected) == pytest.approx(parameters(convolved), rel=0.1)


def test_runs_differ_in_network_data_and_seed_only() -> None:
    told = [settings(network, data, 1) for network, data in ((BY_DEPTH[0], "digits"), (BY_DEPTH[5], "permuted-digits"))]
    assert told[0].recipe == told[1].recipe
    assert told[0].arguments["pattern"] == "INPUT -> [FC -> RELU]*1 -> FC"
    assert told[1].arguments["pattern"] == "INPUT -> [CONV -> RELU -> POOL]*2 -> FC"


def test_table_and_picture_show_mean_and_spread(tmp_path: Path) -> None:
    results = [Result(network, "digits", 50_000, 60_000, [0.02, 0.04, 0.06]) for network in BY_DEPTH]
    assert "| fully connected, 48 | digits | 1 | 50,000 | 60,000 | 4.0 ± 2.0 | 2.0, 4.0, 6.0 |" in table(results)
    draw(results, "depth", tmp_path / "depth.png")
    assert Image.open(tmp_path / "depth.png").width > 400
