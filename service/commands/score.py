"""`convoy score`: any number of images through a model file or a running server, into Parquet."""

import importlib
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from convoy.service.commands.options import CaFile, CertificateFile, Json, KeyFile, TokenFile, UseTls, credentials
from convoy.service.commands.terminal import console, plain, print_json
from convoy.service.errors import BadConfig

_ENGINES = {"local": "convoy.service.scoring.local", "ray": "convoy.service.scoring.ray_data"}
_SECONDS = 10.0  # between lines where there is no terminal
_WINDOW = 30.0  # seconds over which the rate is measured: what is left follows from the present rate


def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, a glob in quotes, tar shards, Parquet with a column of images, CSV of paths, or - for "
            "paths on standard input.",
        ),
    ],
    *,
    model: Annotated[
        str, typer.Option("--model", metavar="FILE|NAME@HOST:PORT", help="A model file, or a model of a server.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the results; a run in it continues.")
    ],
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", min=1, max=65_536, help="Labels of each image, for classification.")
    ] = 5,
    masks: Annotated[
        Literal["rle", "png"], typer.Option("--masks", help="How the rows contain masks: COCO run lengths, or PNG.")
    ] = "rle",
    mask_files: Annotated[
        str, typer.Option("--mask-files", metavar="DIR", help="Write masks as PNG files instead; the rows name them.")
    ] = "",
    column: Annotated[
        str, typer.Option("--column", metavar="NAME", help="Column of images or paths in Parquet and CSV.")
    ] = "",
    id_column: Annotated[str, typer.Option("--id-column", metavar="NAME", help="Column of ids in them.")] = "",
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", min=1, max=1 << 20, help="Images in each file of the results.")
    ] = 1024,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="This machine, or many nodes and GPUs with Ray Data.")
    ] = "local",
    actors: Annotated[
        int, typer.Option("--actors", metavar="N", min=0, help="With ray: processes that score; 0: as many as fit.")
    ] = 0,
    cpus: Annotated[
        int,
        typer.Option("--cpus", metavar="N", min=0, help="With ray: cores of each; 0: a machine's, or a GPU's share."),
    ] = 0,
    gpus: Annotated[
        float, typer.Option("--gpus", metavar="N", min=0, help="With ray: GPUs of each; below 1: several share one.")
    ] = 0.0,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", metavar="N", min=0, max=1024, help="Images in a run; 0: as the profile says."),
    ] = 0,
    provider: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--provider", help="Execution provider of a model file.")
    ] = "auto",
    device: Annotated[int, typer.Option("--device", metavar="N", min=0, help="Index of the CUDA device.")] = 0,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=0, help="Threads of a model file's runs; 0: one per core.")
    ] = 0,
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
    json: Json = False,
) -> None:
    """Score images: a row for each in Parquet, with its labels, or its mask and the area of each class.

    An image that cannot be scored is a row with its error; the exit code is then 1. A run that has been interrupted or
    killed continues with the same command. A server is asked at low priority.
    """
    from convoy.service.scoring.columns import parquet
    from convoy.service.scoring.output import Asked
    from convoy.service.scoring.score import Score

    parquet()
    work = Score(
        model,
        top_k=top_k,
        masks=masks,
        batch_size=batch_size,
        provider=provider,
        device=device,
        threads=threads,
        credentials=credentials(tls, ca, certificate, key, token_file),
    )
    asked = Asked(source=source, column=column, id_column=id_column, rows=rows, mask_files=mask_files)
    run = importlib.import_module(_ENGINES[engine]).run
    if engine == "ray":
        from convoy.service.scoring.ray_data import Cluster

        run = partial(run, cluster=Cluster(actors=actors, cpus=cpus, gpus=gpus))
    elif actors or cpus or gpus:
        raise BadConfig("--actors, --cpus and --gpus are for --engine ray")
    with Shown(console(stderr=True)) as shown:
        try:
            summary = run(work, output, asked, shown)
        except KeyboardInterrupt:
            shown.end()
            print(f"convoy score: interrupted; the same command continues in {str(output)!r}", file=sys.stderr)
            raise
    if json:
        print_json({**summary._asdict(), "output": str(output)})
    else:
        rate = f", {summary.scored / summary.seconds:,.0f} a second" if summary.scored and summary.seconds else ""
        earlier = summary.images - summary.scored
        kept = f", {earlier:,} of them by an earlier run" if earlier else ""
        errors = f", {summary.failed:,} with an error" if summary.failed else ""
        console().print(f"scored {summary.images:,} images{kept}{errors}: {plain(str(output))}{rate}", soft_wrap=True)
    if summary.failed:
        raise typer.Exit(1)


class Shown:
    """The progress of a run: a bar on a terminal, and a line now and then elsewhere. Called from any thread."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._lock = threading.Lock()  # guards the numbers
        self._total, self._complete = 0, False
        self._kept = self._scored = self._failed = 0
        self._times: list[tuple[float, int]] = []  # of a second each: when, and how many were scored
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def listed(self, images: int, complete: bool) -> None:
        """See Watch."""
        with self._lock:
            self._total, self._complete = images, complete

    def kept(self, images: int, failed: int) -> None:
        """See Watch."""
        with self._lock:
            self._kept += images
            self._failed += failed

    def scored(self, failed: bool) -> None:
        """See Watch."""
        with self._lock:
            self._scored += 1
            self._failed += failed

    def end(self) -> None:
        """Removes the bar."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def line(self, now: float) -> str:
        """The progress in words: images of all, rate, errors, time left."""
        with self._lock:
            done, scored, failed = self._kept + self._scored, self._scored, self._failed
            total, complete = self._total, self._complete
        self._times = [each for each in self._times if each[0] > now - _WINDOW] or self._times[-1:]
        self._times.append((now, scored))
        seconds, images = now - self._times[0][0], scored - self._times[0][1]
        rate = images / seconds if seconds > 0 else 0.0
        words = [f"{done:,} of {total:,}{'' if complete else ' or more'}", f"{rate:,.1f} images/s"]
        if failed:
            words.append(f"{failed:,} errors")
        if complete and rate:
            words.append(f"{_duration((total - done) / rate)} left")
        return ", ".join(words)

    @property
    def share(self) -> float:
        """What is done, 0..1; 0 while the size of the source is unknown."""
        with self._lock:
            return (self._kept + self._scored) / self._total if self._complete and self._total else 0.0

    def _show(self) -> None:
        if not self._screen.is_terminal:
            self.line(time.monotonic())
            while not self._ended.wait(_SECONDS):
                self._screen.print(f"scoring: {self.line(time.monotonic())}", soft_wrap=True)
            return
        columns = (BarColumn(24), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
        with Progress(*columns, console=self._screen, transient=True) as progress:
            bar = progress.add_task("", total=1.0)
            while True:
                progress.update(bar, description=self.line(time.monotonic()), completed=self.share)
                if self._ended.wait(0.25):
                    return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
