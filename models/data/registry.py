"""Every data set by name, and one's own by the path where it lies."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from models.data import aerial, clips, digits, permuted, scenes, sources, table, waveforms
from models.data.dataset import DataSet, Split, SplitName
from models.data.faults import Report, refuse, tell
from models.errors import BadTraining
from service.metadata import Task

DATA: dict[str, Callable[[], DataSet]] = {
    "digits": digits.load,
    "digit-scenes": scenes.load,
    "aerial": aerial.load,
    "gait": waveforms.load,
    "motions": clips.load,
    "permuted-digits": permuted.load,
}


def resolve(text: str) -> str:
    """What a run notes of the data it was given: a name as it is, a folder or CSV file as its absolute path. Raises
    BadTraining."""
    if text in DATA:
        return text
    if not _lies(Path(text)):
        raise _unknown(text)
    return str(Path(text).resolve())


def shown(name: str) -> str:
    """The name of a data set without the folders above it, which are nobody else's business."""
    return name if name in DATA else Path(name).name.removesuffix(table.SUFFIX)


def data_set(name: str, strict: bool = False) -> DataSet:
    """The data set that `resolve` answered. Of one's own pictures, those that cannot be trained with are told on stderr
    and left out; `strict` raises BadData for them. Raises BadTraining, BadData."""
    return loaded(name, _report(strict))


def loaded(name: str, report: Report) -> DataSet:
    """The data set that `resolve` answered; what of one's own pictures cannot be trained with goes to `report`. Raises
    BadTraining, BadData."""
    return DATA[name]() if name in DATA else sources.load(_there(name), report)


def held_out(
    name: str, task: Task, colour: Literal["RGB", "L"] | None, labels: list[str], strict: bool = False
) -> Split:
    """The test split of a data set, as `split_of` gives it."""
    return split_of(name, "test", task, colour, labels, strict)


def split_of(
    name: str,
    split: SplitName,
    task: Task,
    colour: Literal["RGB", "L"] | None,
    labels: list[str],
    strict: bool = False,
) -> Split:
    """One split of a data set, for a network that was trained on it or on data with the same classes.

    Raises BadTraining where it is for something else or a folder is not there any more, BadData for what is wrong in
    one. What `strict` does is as in `data_set`.
    """
    if name not in DATA:
        if colour is None:
            raise BadTraining(f"{name} is a folder of images, the network takes none")
        return sources.split(_there(name), split, task, colour, labels, _report(strict))
    data = DATA[name]()
    if (data.task, data.colour, data.labels) != (task, colour, labels):
        raise BadTraining(f"data set {name} has other classes, another task or other colours than the network")
    return data.split(split)


def _report(strict: bool) -> Report:
    return refuse if strict else tell


def _lies(path: Path) -> bool:
    return path.is_dir() or table.found(path)


def _there(name: str) -> Path:
    path = Path(name)
    if not path.is_absolute():
        raise _unknown(name)
    if not _lies(path):
        kind = "file" if path.suffix == table.SUFFIX else "folder"
        raise BadTraining(
            f"there is no {kind} {path} any more, want its pictures: say where they are with --data DIR, "
            "or export --without-data"
        )
    return path


def _unknown(text: str) -> BadTraining:
    return BadTraining(
        f"data set {text!r}, want one of: {', '.join(DATA)}; or a folder of pictures, or a CSV file that lists some"
    )
