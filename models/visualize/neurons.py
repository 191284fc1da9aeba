"""Maximum response pictures for the channels of a layer."""

from torch import Tensor

from convoy.models.settings import AscentSettings
from convoy.models.visualize import activation_maximization, hooks
from convoy.models.visualize.activation_maximization import Growing, Grown, ScoreOf
from convoy.models.visualize.ascent import response
from convoy.models.visualize.hooks import Layer
from convoy.models.visualize.network import Pixels, Size, Subject
from convoy.models.visualize.sheet import Section, Tile


def neurons(
    subject: Subject, layer: Layer, channels: list[int], size: Size, climb: AscentSettings, growing: Growing
) -> Grown:
    """Optimises a picture for each channel, from noise. A channel's noise does not depend on the other channels."""
    return activation_maximization.grow(subject, channels, size, _score(subject, layer, channels), climb, growing)


def responses(subject: Subject, layer: Layer, channels: list[int], images: list[Pixels]) -> list[float]:
    """Returns the response of each channel to its image, as defined by `ascent.response`."""
    return activation_maximization.measured(_score(subject, layer, channels), images)


def section(subject: Subject, channels: list[int], images: list[Pixels], reached: list[float] | None) -> Section:
    """Returns the pictures with the response they reached, if known."""
    values = [""] * len(images) if reached is None else [f": {value:.3g}" for value in reached]
    tiles = [
        Tile(subject.drawn(image), f"{channel}{value}")
        for channel, image, value in zip(channels, images, values, strict=True)
    ]
    return Section(f"channel{'' if reached is None else ': its response'}", tiles)


def _score(subject: Subject, layer: Layer, channels: list[int]) -> ScoreOf:
    def score(pictures: Tensor, batch: list[int]) -> Tensor:
        answer = hooks.answers(subject, [layer.name], pictures)[layer.name]
        # One row each: the positions of its channel, or its single value.
        own = answer[range(len(batch)), [channels[place] for place in batch]]
        return response(own.reshape(len(batch), -1))

    return score
