"""Weights averaged over the steps of a run: validated, kept and served in place of the last step's."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def averaging(decay: float) -> WeightAveraging:
    """An exponential moving average of the weights after each step (Polyak and Juditsky 1992; as a moving average,
    Tarvainen and Valpola, arXiv 1703.01780).

    Validation and every checkpoint's network have the average; the weights that training goes on with lie beside it.
    While there are few steps the average remembers fewer of them, (1 + n) / (10 + n) after n, up to `decay`: it would
    mostly be the random start otherwise.
    """

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not current.is_floating_point():  # how many batches a normalisation has seen
            return current
        remembered = min(decay, (1 + int(steps)) / (10 + int(steps)))
        # In this form what does not change stays as it is, to the bit.
        return averaged + (current - averaged) * (1 - remembered)

    return WeightAveraging(avg_fn=average)
