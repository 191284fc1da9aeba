"""`convoy models`: lists the models of a server."""

import sys

import msgspec
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from convoy.service.client.client import Client
from convoy.service.client.requests import DEFAULT_TARGET
from convoy.service.client.results import Input, Model, Tensor
from convoy.service.commands.options import DEADLINE, Deadline, Json, Server
from convoy.service.commands.terminal import console, plain

_TASK = {
    "classification": "classify",
    "segmentation": "segment",
    "matching": "locate",
    "tensors": "tensors",
}  # name of the command
_STATE_STYLE = {"ready": "green", "loading": "yellow", "unavailable": "red"}


def models(*, server: Server = DEFAULT_TARGET, deadline: Deadline = DEADLINE, json: Json = False) -> None:
    """List the models of a server: versions, inputs, providers and metrics."""
    with Client(server) as client:
        served = client.models(deadline)
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(served), indent=2).decode() + "\n")
    else:
        show(console(), served)


def show(out: Console, served: list[Model]) -> None:
    """Print the table, and below it why versions are not ready."""
    if not served:
        out.print("The server's model repository holds no model.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("model", "version", "state", "task", "provider", "input", "labels"):
        table.add_column(name, justify="right" if name in ("version", "labels") else "left", no_wrap=True)
    table.add_column("metrics")
    for one in served:
        table.add_row(
            Text(plain(one.model), "bold"),
            str(one.version),
            Text(one.state, _STATE_STYLE.get(one.state, "")),
            "infer" if one.tensor else _TASK.get(one.task, ""),
            " ".join(filter(None, (plain(one.provider).removesuffix("ExecutionProvider"), plain(one.precision)))),
            tensor_size(one.tensor) if one.tensor else input_size(one.input),
            str(len(one.labels)) if one.labels else "",
            "\n".join(f"{plain(name)} {value:.3g}" for name, value in sorted(one.metrics.items())),
        )
    # At full width, even on a narrower terminal: a truncated model name cannot be used.
    out.width = max(out.width, Measurement.get(out, out.options.update(max_width=1000), table).maximum)
    out.print(table)
    for one in served:
        if one.reason:
            out.print(Text(f"{plain(one.model)} {one.version}: {plain(one.reason)}"), soft_wrap=True)


def input_size(taken: Input) -> str:
    """An image input as text: 32×32 L, any size RGB; empty if unknown."""
    if not taken.colour:
        return ""
    if taken.height and taken.width:
        return f"{taken.width}×{taken.height} {taken.colour}"
    return f"any size {taken.colour}"


def tensor_size(taken: Tensor) -> str:
    """A tensor input as text: [3, time] FP32."""
    sides = ", ".join(str(axis.size or plain(axis.name)) for axis in taken.axes)
    return f"[{sides}] {plain(taken.datatype)}"
