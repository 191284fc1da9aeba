"""Data sets: built-in ones by name, a user's own by path."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from convoy.models import registry
from convoy.models.data.files import Report, print_faults, raise_first
from convoy.models.data.formats import table
from convoy.models.data.formats.coding import Coding, of_source, source
from convoy.models.errors import BadTraining
from convoy.service.metadata import Task

if TYPE_CHECKING:
    from convoy.models.data.dataset import DataSet, Split, SplitName


def _built_in(path: str) -> "Callable[[], DataSet]":
    """Returns the function that `path` names, below `builtin`. Its import, which includes scikit-learn, happens when
    the data is loaded."""

    def load_built_in() -> "DataSet":
        data: DataSet = registry.imported(f"data.builtin.{path}")()
        return data

    return load_built_in


DATA: "dict[str, Callable[[], DataSet]]" = {
    "digits": _built_in("digits:load"),
    "digit-scenes": _built_in("scenes:load"),
    "aerial": _built_in("aerial:load"),
    "gait": _built_in("waveforms:load"),
    "motions": _built_in("clips:load"),
    "permuted-digits": _built_in("digits:load_permuted"),
}


def resolve(text: str, coding: Coding | None = None) -> str:
    """Returns the text by which a run records its data: a built-in name unchanged, or the absolute path of a folder or
    CSV file and the coding of its masks. Raises BadTraining."""
    path, recorded = of_source(text)
    coding = coding or recorded
    if path in DATA:
        if coding is not None:
            raise BadTraining(f"--mask-{coding.kind} describes users' own masks, {path} has none")
        return path
    if not _exists(Path(path)):
        raise _unknown(path)
    return source(Path(path).resolve(), coding)


def resolve_replacement(text: str, before: str) -> str:
    """Returns what `resolve` returns for data that replaces other data. Its masks have the same coding, unless `text`
    contains one. Raises BadTraining."""
    return resolve(text, None if text in DATA or of_source(text)[1] else of_source(before)[1])


def display_name(name: str) -> str:
    """Returns the name of a data set without its parent folders, which may be private."""
    return name if name in DATA else Path(of_source(name)[0]).name.removesuffix(table.SUFFIX)


def data_set(name: str, strict: bool = False) -> "DataSet":
    """Returns the data set that `resolve` named. Reports a user's images that training cannot use on stderr and leaves
    them out; with `strict`, raises BadData instead. Raises BadTraining, BadData."""
    return load(name, _report(strict))


def load(name: str, report: Report) -> "DataSet":
    """Returns the data set that `resolve` named. Passes a user's images that training cannot use to `report`. Raises
    BadTraining, BadData."""
    if name in DATA:
        return DATA[name]()
    path, coding = _located(name)
    from convoy.models.data.formats import sources  # noqa: PLC0415  names must not wait for Pillow

    return sources.load(path, report, coding)


def split_of(
    name: str,
    split: "SplitName",
    task: Task,
    colour: Literal["RGB", "L"] | None,
    labels: list[str],
    strict: bool = False,
) -> "Split":
    """Returns one split of a data set, for a network that was trained on it or on data with the same classes.

    Raises BadTraining if it is for another task or a folder no longer exists, BadData if its content is invalid.
    `strict` is as in `data_set`.
    """
    if name not in DATA:
        if colour is None:
            raise BadTraining(f"{name} is a folder of images, the network does not accept images")
        path, coding = _located(name)
        from convoy.models.data.formats import sources  # noqa: PLC0415  names must not wait for Pillow

        return sources.split(path, split, task, colour, labels, _report(strict), coding)
    data = DATA[name]()
    if (data.task, data.colour, data.labels) != (task, colour, labels):
        raise BadTraining(f"data set {name} has other classes, another task or other colours than the network")
    return data.split(split)


def _report(strict: bool) -> Report:
    return raise_first if strict else print_faults


def _exists(path: Path) -> bool:
    return path.is_dir() or table.detects(path)


def _located(name: str) -> tuple[Path, Coding | None]:
    text, coding = of_source(name)
    path = Path(text)
    if not path.is_absolute():
        raise _unknown(name)
    if not _exists(path):
        kind = "file" if path.suffix == table.SUFFIX else "folder"
        raise BadTraining(
            f"there is no {kind} {path} any more: specify its location with --data DIR, or export --without-data"
        )
    return path, coding


def _unknown(text: str) -> BadTraining:
    return BadTraining(
        f"data set {text!r}, want one of: {', '.join(DATA)}; or a folder of pictures, or a CSV file that lists some"
    )
