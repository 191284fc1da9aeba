"""Batch normalisation of a batch with one value per channel, which has no deviation."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def normalise_by_the_run(network: nn.Module) -> None:
    """Makes batch normalisation use its moving statistics, as in evaluation, if there is one value per channel.

    This happens if a batch, or one process's part of it, is a single image and the maps are 1x1, often in the last
    batch of an epoch. Torch would raise an error in the middle of a run.
    """
    waiting: set[nn.Module] = set()  # modules to return to training mode

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (values,) = inputs
        if module.training and values.numel() == values.shape[1]:
            waiting.add(module.eval())

    def after(module: nn.Module, inputs: tuple[Tensor, ...], normalised: Tensor) -> None:
        if module in waiting:
            waiting.remove(module.train())

    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
