"""Inception-v3 against its paper, and the two forms in which its weights are published."""

import pytest
import torch
from torch import nn

from convoy.models import registry
from convoy.models.analysis.torch_reader import count
from convoy.models.classification.inception_v3 import Convolutions, InceptionV3, figure_6, figure_7
from convoy.models.errors import BadTraining


@pytest.mark.parametrize(("form", "trainable"), [("keras", 23_817_352), ("torchvision", 23_834_568)])
def test_parameters_of_each_form(form: str, trainable: int) -> None:
    with torch.device("meta"):
        assert count(InceptionV3(form=form)) == (trainable, 34_432)
    assert 23_817_352 + 34_432 == 23_851_784


def test_grids_are_those_of_table_1() -> None:
    with torch.device("meta"):
        network = InceptionV3().eval()
        shapes: list[tuple[int, ...]] = []
        for part in (*network.stem, *network.mixed):
            part.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        assert network(torch.empty(2, 3, 299, 299)).shape == (2, 1000)
    assert shapes[:4] == [(32, 149, 149), (32, 147, 147), (64, 147, 147), (64, 73, 73)]
    assert shapes[4:7] == [(80, 73, 73), (192, 71, 71), (192, 35, 35)]
    assert shapes[7:10] == [(256, 35, 35), (288, 35, 35), (288, 35, 35)]
    assert shapes[10:15] == [(768, 17, 17)] * 5
    assert shapes[15:] == [(1280, 8, 8), (2048, 8, 8), (2048, 8, 8)]


@pytest.mark.parametrize("side", [75, 96])
def test_smaller_images_are_classified(side: int) -> None:
    with torch.device("meta"):
        assert InceptionV3(classes=5).eval()(torch.empty(1, 3, side, side)).shape == (1, 5)


def test_forms_differ_in_the_average_at_the_edge_only() -> None:
    image = torch.ones(1, 1, 5, 5)
    averages = {zeros: Convolutions(zeros_count=zeros).pooled(1, 1)[0](image)[0, 0] for zeros in (False, True)}
    assert averages[False].tolist() == torch.ones(5, 5).tolist()
    assert averages[True][1:4, 1:4].tolist() == torch.ones(3, 3).tolist()
    assert averages[True][0].tolist() == pytest.approx([4 / 9, 6 / 9, 6 / 9, 6 / 9, 4 / 9])


def test_long_branch_of_figure_6_sees_13_rows_and_columns() -> None:
    with torch.no_grad():
        branch = figure_6(1, 2, Convolutions())[2].eval()
        for layer in branch.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.ones_(layer.weight)
        image = torch.zeros(1, 1, 17, 17)
        image[0, 0, 8, 8] = 1
        reached = branch(image)[0, 0] > 0
    assert reached.nonzero().amin(dim=0).tolist() == [2, 2]
    assert reached.nonzero().amax(dim=0).tolist() == [14, 14]
    assert reached.sum() == 13 * 13


def test_rows_and_columns_of_figure_7_stand_side_by_side() -> None:
    with torch.device("meta"):
        module = figure_7(1280, Convolutions())
    kernels = [[layer.kernel_size for layer in branch.modules() if isinstance(layer, nn.Conv2d)] for branch in module]
    assert kernels == [[(1, 1)], [(1, 1), (1, 3), (3, 1)], [(1, 1), (3, 3), (1, 3), (3, 1)], [(1, 1)]]
    with torch.device("meta"):
        assert module[1](torch.empty(2, 1280, 8, 8)).shape == (2, 768, 8, 8)


def test_unknown_form_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadTraining, match="inception_v3: form = 'slim', want one of: keras, torchvision"):
        registry.build("inception_v3", 3, 10, {"form": "slim"})
