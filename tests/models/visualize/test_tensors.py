"""Networks of waveforms and clips are looked into as those of images are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convoy.models.checkpoint import Description
from convoy.models.errors import BadView
from convoy.models.settings import AscentSettings
from convoy.models.visualize import hooks
from convoy.models.visualize.activation_maximization import Options, neurons
from convoy.models.visualize.subjects import GAP, SPREADS, TensorSubject
from convoy.service import cli
from convoy.service.metadata import Axis, TensorInput
from tests.models.conftest import untrained

WAVEFORM = TensorInput(
    name="waveform", dtype="float32", axes=(Axis(name="channel", size=2), Axis(name="time")), unit="degrees"
)
CLIP = TensorInput(
    name="clip",
    dtype="uint8",
    axes=tuple(Axis(name=name, size=size) for name, size in (("time", 3), ("height", 5), ("width", 7), ("channel", 3))),
)


def subject(tensor: TensorInput, network: nn.Module | None = None) -> TensorSubject:
    description = Description(
        architecture="handmade",
        arguments={},
        task="classification",
        tensor=tensor,
        data="",
        labels=["no", "yes"],
        palette=None,
        mean=[0.1, 0.2, 0.3][: tensor.channels],
        std=[2.0, 0.5, 4.0][: tensor.channels],
    )
    return TensorSubject("handmade", description, (network or nn.Identity()).eval().requires_grad_(False))


class OneFilter(nn.Module):
    """One convolution over time without padding; logits are the means of its maps."""

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        count, inputs, length = filters.shape
        self.conv = nn.Conv1d(inputs, count, length, bias=False)
        self.conv.weight.data = filters

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean(dim=2)


def test_clip_goes_in_as_the_server_takes_it() -> None:
    seen = subject(CLIP)
    assert (seen.size(), len(seen.mean)) == ((5, 7), 9)
    clip = torch.randint(0, 256, (2, 3, 5, 7, 3), dtype=torch.uint8)
    pictures = clip.permute(0, 2, 3, 1, 4).reshape(2, 5, 7, 9).float() / 255
    torch.testing.assert_close(seen.as_input(pictures), seen.description.normalisation()(clip))


def test_ends_of_a_waveform_are_three_deviations_from_its_mean() -> None:
    seen = subject(WAVEFORM)
    ends = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3, 1).expand(-1, -1, -1, 2)
    means, stds = (torch.tensor(each)[None, :, None] for each in (seen.description.mean, seen.description.std))
    values = means + torch.tensor([-SPREADS, 0, SPREADS]) * stds
    torch.testing.assert_close(seen.as_input(ends), seen.description.normalisation()(values))


@pytest.mark.parametrize("space", ["pixels", "frequency"])
def test_what_a_channel_answers_most_to_is_its_own_filter(space: str) -> None:
    times = torch.arange(16) / 16
    filters = torch.stack([torch.sin(6.3 * times), torch.cos(6.3 * times)])[None]
    seen = subject(WAVEFORM, OneFilter(filters))
    climb = AscentSettings(steps=30, rate=0.01, jitter=0, blur=0.0, space=space, coloured=seen.coloured)
    size = seen.size((1, 16))
    (image,) = neurons(seen, hooks.layers(seen, size)[0], [0], size, climb, Options(0, lambda: None, film=False)).images
    grown = torch.from_numpy(image[0]).float().T
    for curve, own, other in zip(grown, filters[0], filters[0].flip(0), strict=True):
        assert torch.corrcoef(torch.stack([curve, own]))[0, 1] > 0.9
        assert torch.corrcoef(torch.stack([curve, other]))[0, 1] < 0.5


def test_frames_of_a_clip_stand_side_by_side_in_their_order() -> None:
    image = np.repeat(np.array([40, 80, 120], np.uint8), 3) * np.ones((5, 7, 1), np.uint8)
    strip = subject(CLIP).displayed(image)
    width = (strip.shape[1] - 2 * GAP) // 3
    assert strip.shape[2] == 3
    assert [int(strip[2, place * (width + GAP) + 3, 0]) for place in range(3)] == [40, 80, 120]


def test_waveforms_that_differ_are_drawn_differently_at_one_size() -> None:
    flat, wave = np.full((1, 64, 2), 128, np.uint8), np.full((1, 64, 2), 128, np.uint8)
    wave[0, :, 1] = 128 + 100 * np.sin(np.arange(64) / 5)
    seen = subject(WAVEFORM)
    assert seen.displayed(flat).shape == seen.displayed(wave).shape
    assert (seen.displayed(flat) != seen.displayed(wave)).any()


def test_size_is_told_where_an_axis_is_free_and_refused_where_none_is() -> None:
    assert subject(WAVEFORM).size((1, 200)) == (1, 200)
    assert subject(CLIP).size((5, 7)) == (5, 7)
    with pytest.raises(BadView, match=r"accepts uint8 tensor 'clip' \[N, 3, 5, 7, 3\], want no --size"):
        subject(CLIP).size((5, 8))


def test_network_of_too_many_axes_is_refused() -> None:
    axes = tuple(Axis(name=name, size=2) for name in ("channel", "time", "depth", "height", "width"))
    with pytest.raises(BadView, match="want one to 3 axes besides the channels'"):
        subject(TensorInput(name="volumes", dtype="float32", axes=axes))


@pytest.mark.parametrize(("name", "data"), [("conv1d", "gait"), ("conv3d", "motions")])
def test_commands_show_networks_of_the_zoo_that_take_no_images(
    name: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(untrained(tmp_path, name, data))
    assert cli.run(["visualize", "layers", checkpoint]) == 0
    assert "filters" in capsys.readouterr().out
    for words in (
        ["filters", checkpoint],
        ["filters", checkpoint, "--layer", "features.5" if name == "conv1d" else "features.4"],
        ["neurons", checkpoint, "--layer", "features.1", "--channels", "0-1", "--steps", "2"],
        ["class", checkpoint, "--class", "0", "--steps", "2", "--gif", str(tmp_path / "film.gif")],
    ):
        assert cli.run(["visualize", *words]) == 0
        with Image.open(tmp_path / f"{name}-{words[0]}.png") as picture:
            assert picture.width > 100
