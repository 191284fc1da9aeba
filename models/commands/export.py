"""`convoy export`: a checkpoint becomes the next version of a model in a repository."""

from pathlib import Path
from typing import Annotated

import typer

from models.export import export as run


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .ckpt file that `convoy train` wrote.")],
    repository: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the model repository; made where there is none.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Data set or folder with the same classes.  [default: what it was trained on]"
        ),
    ] = None,
    without_data: Annotated[
        bool, typer.Option("--without-data", help="Compare on generated images and record no scores.")
    ] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the model.  [default: its architecture]")] = None,
) -> None:
    """Export a trained network as an ONNX file that describes itself, if it answers as PyTorch does."""
    exported = run(checkpoint, repository, name, "" if without_data else data)
    parity, provenance = exported.document.parity, exported.document.provenance
    assert parity is not None
    assert provenance is not None
    agreement = parity.top1_agreement if parity.mask_agreement is None else parity.mask_agreement
    scores = "  ".join(f"{score} {value:.4f}" for score, value in provenance.metrics.items())
    print(f"file      {exported.path}  ({exported.path.stat().st_size / 1024:.0f} KiB, version {exported.version})")
    print(f"held out  {scores or 'not measured: there was no data'}")
    kind = "images" if exported.document.tensor is None else "tensors"
    generated = "" if provenance.data else "generated "
    print(
        f"parity    onnxruntime against PyTorch on {parity.images} {generated}{kind}: probabilities differ by at most "
        f"{parity.max_abs_difference:.1e}, {agreement:.4%} of answers are the same"
    )
    print(f"next      convoy serve --repository {repository}")
