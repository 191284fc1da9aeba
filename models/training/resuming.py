"""The record of a run in its checkpoints, and the check whether a run can resume from one."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from convoy.models import checkpoint
from convoy.models.checkpoint import Description
from convoy.models.data.dataset import DataSet, SplitName
from convoy.models.data.formats.folder import FolderSplit
from convoy.models.errors import BadTraining
from convoy.models.training.run import Settings

SETTINGS, PICTURES = "convoy_settings", "convoy_pictures"
USED_SPLITS: tuple[SplitName, ...] = ("train", "validation")  # splits that a run uses
# Recipe fields that determine the optimizer's state, the average and the position in an epoch. Others may change.
FIXED = ("optimizer", "learning_rate", "weight_decay", "batch_size", "accumulate", "crop", "ema")


def record(settings: Settings, data: DataSet) -> dict[str, Any]:
    """Returns the record of a run in its checkpoints: its settings and its pictures."""
    return {SETTINGS: msgspec.to_builtins(settings), PICTURES: pictures(data)}


def settings_of(path: Path) -> Settings | None:
    """Returns the settings of a checkpoint's run; None if it is of an earlier version, or not from a run. Raises
    BadCheckpoint."""
    try:
        return msgspec.convert(checkpoint.content(path).get(SETTINGS), Settings)
    except msgspec.ValidationError:
        return None


def check(path: Path, description: Description, settings: Settings, data: DataSet) -> None:
    """Raises BadTraining if a run with these settings and data cannot resume from a checkpoint, and BadCheckpoint if it
    is not a checkpoint."""
    other, _ = checkpoint.load(path)
    for name in ("architecture", "arguments", "labels", "input"):
        _same(path, name, getattr(other, name), getattr(description, name))
    was = settings_of(path)
    if was is not None:
        _same(path, "seed", was.seed, settings.seed)
        for name in FIXED:
            _same(path, name, getattr(was.recipe, name), getattr(settings.recipe, name))
    _check_pictures(path, other, data)
    done, epochs = checkpoint.epochs(path), settings.recipe.epochs
    if done >= epochs:
        raise BadTraining(f"{path} has {done} epochs of {epochs}: nothing remains to train, want --epochs above {done}")


def pictures(data: DataSet) -> dict[str, Any]:
    """Returns the number of pictures in each split that a run uses, and a digest of their names. It depends neither on
    the location of their folder nor on their contents."""
    splits = {name: data.split(name) for name in USED_SPLITS}
    digest = hashlib.sha256()
    for split in splits.values():
        digest.update(f"{len(split)}\0".encode())
        if isinstance(split, FolderSplit):
            digest.update("".join(f"{split.name(index)}\0" for index in range(len(split))).encode())
    return {**{name: len(split) for name, split in splits.items()}, "digest": digest.hexdigest()}


def _check_pictures(path: Path, other: Description, data: DataSet) -> None:
    was, are = checkpoint.content(path).get(PICTURES), pictures(data)
    if was is None:  # from an earlier version
        _same(path, "data", other.data, data.name)
    elif was != are:
        before, now = (f"{each['train']} for training and {each['validation']} for validation" for each in (was, are))
        raise BadTraining(
            f"{path} was trained with other pictures ({before}) than {data.name} has now ({now}), want the same to go "
            f"on with: --from {path} starts a new run from its weights"
        )


def _same(path: Path, name: str, was: object, value: object) -> None:
    if was != value:
        raise BadTraining(
            f"{path} was trained with {name} {was!r}, this run has {value!r}, want the same to resume: "
            f"--from {path} starts a new run from its weights"
        )
