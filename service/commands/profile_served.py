"""`convoy profile --callers`: serves a model with fixed batch sizes and with the server's own choice, to compare."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table
from rich.text import Text

from convoy.service.bench import sweep
from convoy.service.bench.sweep import Served, Way
from convoy.service.commands.terminal import bar
from convoy.service.config import ModelConfig
from convoy.service.engine import layouts, profiles, profiling
from convoy.service.engine.profiles import Profile
from convoy.service.engine.scheduler.latency_model import RunTimes
from convoy.service.engine.session import beside
from convoy.service.repository import CONFIG_FILE, MODEL_FILE

_ROUNDS = 2
_MODEL = "model"  # its name in the repositories of the comparison
_COLUMNS = 16  # of the longest bar
_KEPT = ("batched", "instances", "buckets")  # settings of the model that do not affect the batch size


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch size serves. `automatic`: the server has chosen it. Rates are in images a second."""

    batch_size: int
    automatic: bool
    predicted: float | None  # by the profile; None: no profile has as many sessions as the server
    served: Served


def compare(
    file: Path,
    settings: ModelConfig,
    by_layout: Sequence[Sequence[Profile]],
    objective: float,
    callers: int,
    seconds: float,
    options: Sequence[str],
) -> list[Row]:
    """Serve the first profiled shape to `callers` callers: with each batch size that they can fill, and by choice.

    Fixed sizes use the usual rule: a batch waits until it is full, but not longer than the maximum queue delay. The
    servers have the profiles of `by_layout`. `options` are server settings.
    """
    everything = [each for row in by_layout for each in row]
    first = everything[0]
    fixed = list(profiling.doubling(min(first.most, callers)))
    print(
        f"serving {len(fixed)} fixed batch sizes and one by choice, {_ROUNDS} rounds of {seconds:g} s each",
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory(prefix="convoy-profile-") as folder:
        ways = [
            Way(
                _repository(Path(folder) / f"{size}", file, settings, everything, size),
                (*options, f"batching.max_batch_size={size}", "batching.policy=timeout"),
            )
            for size in fixed
        ]
        own = _repository(Path(folder) / "auto", file, settings, everything, first.most)
        ways.append(Way(own, (*options, f"batching.max_batch_size={first.most}")))
        height, width = first.shape[:2]
        served = sweep.sweep(_MODEL, ways, callers, seconds, _ROUNDS, (height, width))
        # The profile after serving, which trials may have corrected.
        latest = [each for each in profiles.read(_version(own)) if each.shape == first.shape]
    running = _running(settings, by_layout, objective)
    chosen = _of_layout(latest, running or first)
    rows = [
        Row(batch_size=size, automatic=False, predicted=_predicted(running, size), served=each)
        for size, each in zip(fixed, served, strict=False)
    ]
    size = chosen.batch_size
    return [*rows, Row(batch_size=size, automatic=True, predicted=_predicted(running, size), served=served[-1])]


def table(rows: Sequence[Row]) -> Table:
    found = Table(box=None, pad_edge=False)
    for heading in ("batch", "predicted", "images/s", "lowest", "highest", "mean batch"):
        found.add_column(heading, justify="right")
    found.add_column("")
    most = max(row.served.images_per_second for row in rows)
    for row in rows:
        name = f"auto ({row.batch_size})" if row.automatic else f"{row.batch_size}"
        predicted = "" if row.predicted is None else f"{row.predicted:,.1f}"
        rate = row.served.images_per_second
        line = bar(rate / most, _COLUMNS).rstrip()
        range_ = (f"{each(row.served.rounds):,.1f}" for each in (min, max))
        found.add_row(name, predicted, f"{rate:,.1f}", *range_, f"{row.served.mean_batch_size:.1f}", Text(line))
    return found


def verdict(rows: Sequence[Row]) -> str:
    """What the server's choice reaches of the best fixed batch size, as text."""
    (own,) = (row for row in rows if row.automatic)
    best = max((row for row in rows if not row.automatic), key=lambda row: row.served.images_per_second)
    share = own.served.images_per_second / best.served.images_per_second
    return f"auto reaches {share:.2f} of the best fixed batch size, {best.batch_size}"


def _repository(root: Path, file: Path, settings: ModelConfig, measured: Sequence[Profile], most: int) -> Path:
    """A repository of the model alone, with the profiles as if no larger batch had been tried."""
    folder = _version(root)
    folder.mkdir(parents=True)
    for each in beside(file):
        shutil.copyfile(each, folder / each.name)
    shutil.copyfile(file, folder / MODEL_FILE)  # a server follows no link out of its repository
    kept = {name: value for name in _KEPT if (value := getattr(settings, name)) is not None}
    # A JSON string, number, Boolean or list of such is also one of TOML.
    lines = [f"{name} = {msgspec.json.encode(value).decode()}\n" for name, value in kept.items()]
    (root / _MODEL / CONFIG_FILE).write_text("".join(lines))
    profiles.write(folder, [_up_to(each, most) for each in measured])
    return root


def _version(root: Path) -> Path:
    return root / _MODEL / "1"


def _up_to(profile: Profile, most: int) -> Profile:
    batches = {size: time for size, time in profile.batches.items() if size <= most}
    return msgspec.structs.replace(profile, most=min(profile.most, most), batches=batches)


def _running(settings: ModelConfig, by_layout: Sequence[Sequence[Profile]], objective: float) -> Profile | None:
    """The profile of the layout that the servers use; None if it was not measured."""
    number = settings.instances or 1
    if number == "auto":
        several = len(by_layout) > 1 and layouts.choose(by_layout[0], by_layout[1], objective)
        return by_layout[several][0]
    return next((row[0] for row in by_layout if row[0].machine.instances == number), None)


def _of_layout(stored: Sequence[Profile], running: Profile) -> Profile:
    return next((each for each in stored if each.machine == running.machine), running)


def _predicted(profile: Profile | None, size: int) -> float | None:
    if profile is None:
        return None
    times = RunTimes(max(size, *profile.batches), profile.seconds)
    return profile.machine.instances * size / times.predict(size)
