"""Batch normalisation of a batch that has one number a channel, of which there is no deviation."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def normalise_by_the_run(network: nn.Module) -> None:
    """Let each batch normalisation go by its moving statistics, as in evaluation, where there is one number a channel.

    That is where a batch, or one process's part of it, is a lone image and the maps are 1x1: the last batch of an epoch
    often is. Torch refuses it, in the middle of a run.
    """
    waiting: set[nn.Module] = set()  # to train again

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
