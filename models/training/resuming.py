"""What a checkpoint notes of its run, and whether a run can go on from there."""

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
SEEN: tuple[SplitName, ...] = ("train", "validation")  # by a run
# Of the recipe: what the optimizer's state, the average and the place within an epoch hang on. The rest may change.
FIXED = ("optimizer", "learning_rate", "weight_decay", "batch_size", "accumulate", "crop", "ema")


def noted(settings: Settings, data: DataSet) -> dict[str, Any]:
    """What every checkpoint of a run holds besides: what the run was told, and which pictures it sees."""
    return {SETTINGS: msgspec.to_builtins(settings), PICTURES: pictures(data)}


def settings_of(path: Path) -> Settings | None:
    """What the run of a checkpoint was told; None where that is of an earlier version, or of no run. Raises
    BadCheckpoint."""
    try:
        return msgspec.convert(checkpoint.content(path).get(SETTINGS), Settings)
    except msgspec.ValidationError:
        return None


def check(path: Path, description: Description, settings: Settings, data: DataSet) -> None:
    """Raises BadTraining where a run of these settings, with these data, cannot go on from a checkpoint, and
    BadCheckpoint where it is none."""
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
        raise BadTraining(f"{path} has {done} epochs of {epochs}: nothing is left to train, want --epochs above {done}")


def pictures(data: DataSet) -> dict[str, Any]:
    """How many there are of each split that a run sees, and a digest of their names, which hangs on neither the place
    of their folder nor on what is in them."""
    splits = {name: data.split(name) for name in SEEN}
    digest = hashlib.sha256()
    for split in splits.values():
        digest.update(f"{len(split)}\0".encode())
        if isinstance(split, FolderSplit):
            digest.update("".join(f"{split.name(index)}\0" for index in range(len(split))).encode())
    return {**{name: len(split) for name, split in splits.items()}, "digest": digest.hexdigest()}


def _check_pictures(path: Path, other: Description, data: DataSet) -> None:
    was, are = checkpoint.content(path).get(PICTURES), pictures(data)
    if was is None:  # of an earlier version
        _same(path, "data", other.data, data.name)
    elif was != are:
        before, now = (f"{each['train']} to train and {each['validation']} to validate with" for each in (was, are))
        raise BadTraining(
            f"{path} was trained with other pictures ({before}) than {data.name} has now ({now}), want the same to go "
            f"on with: --from {path} starts a new run from its weights"
        )


def _same(path: Path, name: str, was: object, wanted: object) -> None:
    if was != wanted:
        raise BadTraining(
            f"{path} was trained with {name} {was!r}, this run has {wanted!r}, want the same to go on with: "
            f"--from {path} starts a new run from its weights"
        )
