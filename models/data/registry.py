"""Every data set by name, and one's own by the path of its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from models.data import aerial, clips, digits, folder, scenes, waveforms
from models.data.dataset import DataSet, Split, SplitName
from models.errors import BadTraining
from service.metadata import Task

DATA: dict[str, Callable[[], DataSet]] = {
    "digits": digits.load,
    "digit-scenes": scenes.load,
    "aerial": aerial.load,
    "gait": waveforms.load,
    "motions": clips.load,
}


def resolve(text: str) -> str:
    """What a run notes of the data it was given: a name as it is, a folder as its absolute path. Raises BadTraining."""
    if text in DATA:
        return text
    if not Path(text).is_dir():
        raise _unknown(text)
    return str(Path(text).resolve())


def shown(name: str) -> str:
    """The name of a data set without the folders above it, which are nobody else's business."""
    return name if name in DATA else Path(name).name


def data_set(name: str) -> DataSet:
    """The data set that `resolve` answered. Raises BadTraining, BadData."""
    return DATA[name]() if name in DATA else folder.load(_there(name))


def held_out(name: str, task: Task, colour: Literal["RGB", "L"] | None, labels: list[str]) -> Split:
    """The test split of a data set, as `split_of` gives it."""
    return split_of(name, "test", task, colour, labels)


def split_of(name: str, split: SplitName, task: Task, colour: Literal["RGB", "L"] | None, labels: list[str]) -> Split:
    """One split of a data set, for a network that was trained on it or on data with the same classes.

    Raises BadTraining where it is for something else or a folder is not there any more, BadData for what is wrong in
    one.
    """
    if name not in DATA:
        if colour is None:
            raise BadTraining(f"{name} is a folder of images, the network takes none")
        return folder.split(_there(name), split, task, colour, labels)
    data = DATA[name]()
    if (data.task, data.colour, data.labels) != (task, colour, labels):
        raise BadTraining(f"data set {name} has other classes, another task or other colours than the network")
    return data.split(split)


def _there(name: str) -> Path:
    root = Path(name)
    if not root.is_absolute():
        raise _unknown(name)
    if not root.is_dir():
        raise BadTraining(
            f"there is no folder {root} any more, want its pictures: say where they are with --data DIR, "
            "or export --without-data"
        )
    return root


def _unknown(text: str) -> BadTraining:
    return BadTraining(f"data set {text!r}, want one of: {', '.join(DATA)}; or a folder of pictures")
