"""Weight averaging over the steps of a run: the average is validated, saved and served instead of the last weights."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def averaging(decay: float) -> WeightAveraging:
    """An exponential moving average of the weights after each step (Polyak and Juditsky 1992; as a moving average,
    Tarvainen and Valpola, arXiv 1703.01780).

    Validation and every checkpoint's network use the average; the checkpoint also contains the current weights, from
    which training resumes. The decay after n steps is (1 + n) / (10 + n), at most `decay`: otherwise the random
    initial weights would dominate at first.
    """

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not current.is_floating_point():  # a batch counter of batch normalisation
            return current
        remembered = min(decay, (1 + int(steps)) / (10 + int(steps)))
        # In this form, unchanged weights remain bitwise equal.
        return averaged + (current - averaged) * (1 - remembered)

    return WeightAveraging(avg_fn=average)
