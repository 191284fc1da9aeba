"""Suggestions for a first training run."""

import pytest

from convoy.models.data.check import Sizes, SplitSummary, Summary
from convoy.models.data.registry import data_set
from convoy.models.training import first_run


def summary(task: str, count: int, size: tuple[int, ...], read_as: str | None = "RGB", balance: float = 2.0) -> Summary:
    sizes = Sizes(smallest=size, median=size, largest=size, commonest=size, commonest_count=count, different=1)
    split = SplitSummary(count=count, classes=[count], sizes=sizes)
    return Summary(
        name="mine",
        task=task,  # type: ignore[arg-type]
        labels=["a", "b"],
        splits={"train": split, "validation": split, "test": split},
        balance=balance,
        read_as=read_as,
        grey=0,
        unusable=[],
        unused={},
        copies=[],
    )


def test_few_photographs_are_for_a_small_network_and_many_epochs() -> None:
    few = first_run.suggested(summary("classification", 175, (3000, 4000)))
    assert (few.architecture, few.epochs) == ("pattern", 60)
    assert few.options[:4] == ["--size", "64x64", "--epochs", "60"]
    many = first_run.suggested(summary("classification", 20_000, (480, 640)))
    assert many.epochs == 10


def test_small_grey_pictures_are_for_lenet5() -> None:
    assert first_run.suggested(summary("classification", 1000, (28, 28), "L")).architecture == "lenet5"
    assert first_run.suggested(summary("classification", 1000, (280, 280), "L")).architecture == "pattern"


def test_large_masks_are_cropped_and_rare_classes_count() -> None:
    large = first_run.suggested(summary("segmentation", 60, (600, 800), balance=40.0))
    assert large.architecture == "unet"
    assert large.options[-4:] == ["--crop", "128", "--epochs", "60"]
    assert "cross-entropy+dice" in large.options
    small = first_run.suggested(summary("segmentation", 60, (64, 80)))
    assert "--crop" not in small.options
    assert "--loss" not in small.options


@pytest.mark.parametrize(("size", "name"), [((3, 128), "conv1d"), ((8, 32, 32, 3), "conv3d")])
def test_tensors_are_for_networks_of_as_many_axes(size: tuple[int, ...], name: str) -> None:
    assert first_run.suggested(summary("classification", 100, size, None)).architecture == name


@pytest.mark.parametrize("name", ["digits", "digit-scenes"])
def test_time_is_estimated(name: str) -> None:
    data = data_set(name)
    train = data.split("train")
    kind = summary(data.task, 100, train.size(0), data.colour)
    seconds = first_run.estimated_seconds(first_run.suggested(kind), data)
    assert first_run.START_SECONDS < seconds < 36_000


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "10 seconds"), (44, "40 seconds"), (150, "2 minutes"), (7200, "2.0 hours")]
)
def test_time_is_said_in_words(seconds: float, words: str) -> None:
    assert first_run.in_words(seconds) == words
