"""Every data set by name."""

from collections.abc import Callable

from models.data import digits, scenes
from models.data.dataset import DataSet
from models.errors import BadTraining

DATA: dict[str, Callable[[], DataSet]] = {"digits": digits.load, "digit-scenes": scenes.load}


def data_set(name: str) -> DataSet:
    """The data set of a name. Raises BadTraining, naming those there are."""
    if name not in DATA:
        raise BadTraining(f"data set {name!r}, want one of: {', '.join(DATA)}")
    return DATA[name]()
