"""Writes `docs/experiment.md`'s results: the value of convolutional structure, measured on digits with and without it.

`python -m tools.structure_experiment RUNS FOLDER` trains every network of the experiment into RUNS, as `convoy train`
does, evaluates it on the held-out digits, prints the tables and writes two pictures into FOLDER. Finished runs are not
repeated.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import msgspec
from matplotlib.figure import Figure

from convoy.models import runtime
from convoy.models.analysis.summary import totals
from convoy.models.evaluation.evaluate import evaluate_file
from convoy.models.training.run import RunFolder, Settings, default_settings
from convoy.models.training.train import train

Kind = Literal["fully connected", "convolutions"]

EPOCHS, BATCH_SIZE, LEARNING_RATE = 15, 64, 3e-3
SEEDS = range(3)
DATA = ("digits", "permuted-digits")
SIDE = 32  # image side in pixels
DEPTH = 2  # hidden layers of the networks that differ in their number of parameters
STYLES = {"digits": "-", "permuted-digits": "--"}
COLOURS: dict[Kind, str] = {"fully connected": "tab:orange", "convolutions": "tab:blue"}


@dataclass(frozen=True)
class Network:
    """`depth` is the number of layers before the last one; `widths` are their units or feature maps."""

    kind: Kind
    depth: int
    widths: str

    @property
    def arguments(self) -> dict[str, str]:
        """The arguments for `convoy train pattern --set`."""
        if self.kind == "fully connected":
            return {"pattern": f"INPUT -> [FC -> RELU]*{self.depth} -> FC", "dense": self.widths}
        return {"pattern": f"INPUT -> [CONV -> RELU -> POOL]*{self.depth} -> FC", "widths": self.widths}

    @property
    def name(self) -> str:
        return f"{self.kind.split()[0]}-{self.widths.replace(',', '-')}"


# About 50,000 parameters each.
BY_DEPTH = (
    Network("fully connected", 1, "48"),
    Network("fully connected", 2, "46,46"),
    Network("fully connected", 3, "44,44,44"),
    Network("fully connected", 4, "43,43,43,43"),
    Network("convolutions", 1, "19"),
    Network("convolutions", 2, "16,64"),
    Network("convolutions", 3, "16,32,100"),
    Network("convolutions", 4, "16,32,64,43"),
)
# About 5,000, 15,000, 50,000 and 150,000 parameters.
BY_PARAMETERS = (
    Network("fully connected", DEPTH, "5,5"),
    Network("fully connected", DEPTH, "14,14"),
    Network("fully connected", DEPTH, "46,46"),
    Network("fully connected", DEPTH, "128,128"),
    Network("convolutions", DEPTH, "4,7"),
    Network("convolutions", DEPTH, "8,21"),
    Network("convolutions", DEPTH, "16,64"),
    Network("convolutions", DEPTH, "32,160"),
)


@dataclass(frozen=True)
class Result:
    """Results of one network on one data set: `errors` on the held-out split, 0..1, one per seed."""

    network: Network
    data: str
    parameters: int
    multiply_adds: int
    errors: list[float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.errors)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds."""
        return statistics.stdev(self.errors)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.structure_experiment", description=__doc__)
    parser.add_argument("runs", type=Path, metavar="RUNS")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    runtime.limit_threads()
    by_depth = [result(network, data, arguments.runs) for network in BY_DEPTH for data in DATA]
    by_parameters = [result(network, "digits", arguments.runs) for network in BY_PARAMETERS]
    draw(by_depth, "depth", arguments.folder / "experiment-depth.png")
    draw(by_parameters, "parameters", arguments.folder / "experiment-parameters.png")
    print(table(by_depth))
    print(table(by_parameters))


def result(network: Network, data: str, runs: Path) -> Result:
    """Trains the network with every seed, unless already done, and evaluates it."""
    cost = totals("pattern", (SIDE, SIDE), classes=10, channels=1, arguments=network.arguments)
    checkpoints = [trained(network, data, seed, runs) for seed in SEEDS]
    errors = [1 - evaluate_file(checkpoint).scores["top1"] for checkpoint in checkpoints]
    return Result(network, data, cost.parameters, cost.multiply_adds, errors)


def settings(network: Network, data: str, seed: int) -> Settings:
    """Returns the settings of one run."""
    defaults = default_settings("pattern", data)
    changed = msgspec.structs.replace(
        defaults.recipe, epochs=EPOCHS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, patience=EPOCHS
    )
    arguments = defaults.arguments | network.arguments
    return msgspec.structs.replace(defaults, arguments=arguments, recipe=changed, seed=seed)


def trained(network: Network, data: str, seed: int, runs: Path) -> Path:
    """Trains one run, unless already done. Returns its checkpoint."""
    folder, run_settings = RunFolder(runs / f"{network.name}-{data}-{seed}"), settings(network, data, seed)
    if not folder.finished(run_settings):
        print(folder.root, file=sys.stderr)
        train(run_settings, folder.root)
    return folder.chosen()


def table(results: Iterable[Result]) -> str:
    """Returns the results as Markdown."""
    lines = [
        "| network | data | hidden layers | parameters | multiply-adds | held-out errors, % | each seed |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for each in results:
        seeds = ", ".join(f"{100 * error:.1f}" for error in each.errors)
        network = each.network
        lines.append(
            f"| {network.kind}, {network.widths} | {each.data} | {network.depth} | {each.parameters:,} | "
            f"{each.multiply_adds:,} | {100 * each.mean:.1f} ± {100 * each.spread:.1f} | {seeds} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: Sequence[Result], axis: Literal["depth", "parameters"], path: Path) -> None:
    """Plots errors against depth or parameters into a PNG file: means, with bars of one standard deviation."""
    mpl.use("Agg")  # no window, so no display is needed
    lines: dict[tuple[Kind, str], list[Result]] = defaultdict(list)
    for each in results:
        lines[each.network.kind, each.data].append(each)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (kind, data), results_of_line in lines.items():
        across = [each.network.depth if axis == "depth" else each.parameters for each in results_of_line]
        means, spreads = [100 * each.mean for each in results_of_line], [100 * each.spread for each in results_of_line]
        axes.errorbar(
            across,
            means,
            spreads,
            color=COLOURS[kind],
            linestyle=STYLES[data],
            marker="o",
            capsize=3,
            label=f"{kind}, {data}",
        )
    if axis == "parameters":
        axes.set(xscale="log", yscale="log", xlabel=f"parameters, {DEPTH} hidden layers")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        depths = sorted({each.network.depth for each in results})
        axes.set(ylim=(0, None), xticks=depths, xlabel="hidden layers, about 50,000 parameters")
    axes.set(ylabel="held-out digits read wrongly, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=90, format="png")


if __name__ == "__main__":
    main()
