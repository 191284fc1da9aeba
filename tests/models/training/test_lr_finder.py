"""The range test: rates that rise, and where the loss falls fastest."""

import csv
import math
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from convoy.models.errors import BadTraining
from convoy.models.training.lr_finder import HIGHEST, LOWEST, STEPS, Trial, rate_of, smoothed, suggestion
from convoy.service import cli


def trials(best: float, floor: float = 0.1) -> list[Trial]:
    """A loss that comes down around the rate `best`, and goes up from thirty times that."""
    found = []
    for step in range(STEPS):
        rate = rate_of(step)
        if rate > 300 * best:
            break
        fall = 1 / (1 + (best / rate) ** 2)
        found.append(Trial(rate, 2.3 - (2.3 - floor) * fall + max(0.0, rate / (30 * best) - 1)))
    return found


def test_rates_rise_by_a_constant_factor_over_their_whole_range() -> None:
    rates = [rate_of(step) for step in range(STEPS)]
    assert (rates[0], rates[-1]) == (LOWEST, pytest.approx(HIGHEST))
    factors = [second / first for first, second in pairwise(rates)]
    assert max(factors) == pytest.approx(min(factors))


@pytest.mark.parametrize("best", [1e-4, 3e-3, 0.1])
def test_suggested_rate_is_where_the_loss_falls_fastest(best: float) -> None:
    # Smoothing sees it a few steps late, of 17 to a power of ten.
    assert 0 <= math.log10(suggestion(trials(best)) / best) < 0.7


def test_loss_that_never_falls_suggests_nothing() -> None:
    with pytest.raises(BadTraining, match="no learning rate from 1e-06 to 10 makes the loss smaller"):
        suggestion([Trial(rate_of(step), 2.3 + step) for step in range(50)])
    with pytest.raises(BadTraining, match="no learning rate"):
        suggestion([])


def test_smoothed_losses_do_not_lean_to_zero_at_the_start() -> None:
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)


def test_find_lr_prints_a_rate_and_leaves_its_curve_and_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "lenet5", "--data", "tiny-digits", "--find-lr", "--output", str(tmp_path)]
    assert cli.run(run) == 0
    out = capsys.readouterr().out
    suggested = float(out.split("--lr ")[1].split()[0])
    assert 1e-4 < suggested < 1
    with (tmp_path / "lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["learning_rate", "loss", "smoothed_loss"]
    assert float(rows[0]["learning_rate"]) == pytest.approx(LOWEST)
    assert f"{suggested:.2g}" in {f"{float(row['learning_rate']):.2g}" for row in rows}
    with Image.open(tmp_path / "lr.png") as picture:
        assert picture.width > 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr.csv", "lr.png"]
