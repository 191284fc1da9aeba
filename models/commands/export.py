"""`convoy export`: publishes a checkpoint as the next version of a model in a repository."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from convoy.models import paths
from convoy.models.commands.options import check_data, checkpoint_of, print_step, print_table
from convoy.models.errors import BadTraining, VariantRefused
from convoy.models.export import publish
from convoy.models.settings import DEFAULT_PLAN, Plan
from convoy.service.metadata import Calibration, Precision

if TYPE_CHECKING:
    from convoy.models.export.export import Exported
    from convoy.models.export.variants import Outcome

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT|RUN",
            help="A .ckpt file that `convoy train` wrote, or the folder of a run.",
            callback=checkpoint_of,
        ),
    ],
    repository: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the model repository; created if it does not exist.")
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
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the model; two variants with one name are two versions of it.  [default: architecture]",
        ),
    ] = None,
    variant: Annotated[
        Precision | None,
        typer.Option(help="fp16: half precision, for CUDA; int8: 8-bit integers, for the CPU.  [default: fp32]"),
    ] = None,
    all_variants: Annotated[
        bool, typer.Option("--all-variants", help="Only print a table of all variants; writes nothing.")
    ] = False,
    max_drop: Annotated[
        float,
        typer.Option(
            metavar="X", min=0, max=1, help="Maximum loss of top-1 or mean IoU of a variant; 0.01 is a point."
        ),
    ] = DEFAULT_PLAN.max_drop,
    calibration: Annotated[
        Calibration, typer.Option(help="How int8 ranges are derived from training images.")
    ] = DEFAULT_PLAN.calibration,
    calibration_images: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of training images, evenly spread.")
    ] = DEFAULT_PLAN.calibration_images,
    no_samples: Annotated[
        bool, typer.Option("--no-samples", help="Copy no held-out pictures beside the model, for people to try it on.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse data with an unreadable picture instead of skipping it.")
    ] = False,
) -> None:
    """Export a trained network as a self-describing ONNX file, if its outputs equal PyTorch's."""
    if all_variants and variant is not None:
        raise BadTraining(f"--all-variants only prints a table: want it without --variant {variant}")
    if without_data and data is not None:
        raise BadTraining(f"--without-data and --data {data}: want one of the two")
    if name is not None and not all_variants:
        publish.check_name(name)
    paths.check_checkpoint(checkpoint)
    check_data(data)
    plan = Plan(max_drop=max_drop, calibration=calibration, calibration_images=calibration_images)
    held_out = "" if without_data else data
    if all_variants:
        options = {"--name": name, "--data": data, "--without-data": "" if without_data else None}
        again = _repeated_command(checkpoint, repository, options, plan)
        _compare(checkpoint, held_out, plan, strict, again)
        return

    from convoy.models.export.export import export as run

    exported = run(
        checkpoint, repository, name, held_out, variant or "fp32", plan, strict, print_step, with_samples=not no_samples
    )
    print(f"file      {exported.path}  ({exported.path.stat().st_size / 1024:.0f} KiB, version {exported.version})")
    provenance = exported.document.provenance
    assert provenance is not None
    scores = "  ".join(f"{score} {value:.4f}" for score, value in provenance.metrics.items())
    print(f"held out  {scores or 'not measured: no data'}")
    for line in _check_lines(exported):
        print(line)
    if exported.samples:
        pictures = "1 held-out picture is" if exported.samples == 1 else f"{exported.samples} held-out pictures are"
        print(f"samples   {pictures} copied beside it for the server's page: --no-samples leaves them out")
    print(f"next      convoy serve --repository {shlex.quote(str(repository))}")
    print(f"          {shlex.join(_question(exported))}")


def _question(exported: "Exported") -> list[str]:
    """Returns a command that asks the server about a held-out picture."""
    if exported.example is None:
        return ["convoy", "models"]
    here = Path.cwd()
    path = exported.example.relative_to(here) if exported.example.is_relative_to(here) else exported.example
    command, *after = ("segment", "-o", "mask.png") if exported.document.task == "segmentation" else ("classify",)
    return ["convoy", command, str(path), *after, "--model", exported.path.parents[1].name]


def _check_lines(exported: "Exported") -> list[str]:
    parity, variant, provenance = exported.document.parity, exported.document.variant, exported.document.provenance
    kind = "images" if exported.document.tensor is None else "tensors"
    generated = "" if provenance is not None and provenance.data else "generated "
    if variant is None:
        assert parity is not None
        agreement = parity.top1_agreement if parity.mask_agreement is None else parity.mask_agreement
        return [
            f"parity    onnxruntime against PyTorch on {parity.images} {generated}{kind}: probabilities differ by at "
            f"most {parity.max_abs_difference:.1e}, {agreement:.4%} of predictions are equal"
        ]
    lost = "" if variant.drop is None else f"{variant.score} is {-variant.drop:+z.4f}, "
    where = ", ".join(filter(None, (variant.provider, variant.processor)))
    lines = [
        f"{variant.precision}      against fp32 on {variant.images} {generated}{kind}: {lost}{variant.agreement:.4%} "
        f"of predictions are equal, probabilities differ by at most {variant.max_abs_difference:.1e}",
        f"speed     {variant.speed_up:.2f} times fp32's with one at a time, {variant.batched_speed_up:.2f} times in "
        f"batches; {where}",
    ]
    if variant.calibration is not None:
        lines.append(f"ranges    {variant.calibration} of {variant.calibration_images} training {kind}")
    return lines


def _repeated_command(checkpoint: Path, repository: Path, chosen: dict[str, str | None], plan: Plan) -> list[str]:
    """Returns the command of this export, without options that have their default."""
    planned = {
        f"--{name.replace('_', '-')}": str(value)
        for name, value in msgspec.structs.asdict(plan).items()
        if value != getattr(DEFAULT_PLAN, name)
    }
    options = [word for name, value in {**chosen, **planned}.items() if value is not None for word in (name, value)]
    return ["convoy", "export", str(checkpoint), "--repository", str(repository), *filter(None, options)]


def _compare(checkpoint: Path, data: str | None, plan: Plan, strict: bool, again: list[str]) -> None:
    from convoy.models.export import variants
    from convoy.models.export.export import trace
    from convoy.models.export.variants import make, measure

    traced = trace(checkpoint, data, strict, print_step)
    graphs = {}
    for precision in PRECISIONS:
        try:
            print_step(f"converting to {precision}")
            graphs[precision] = make(precision, traced.graph, traced.description, plan)
        except VariantRefused as refusal:
            print(f"{precision}: {refusal.message}")
    print_step("measuring all of them")
    outcomes: dict[Precision, Outcome] = measure(graphs, traced.description, plan)
    print_table(variants.table(outcomes, traced.description.task))
    for note in variants.notes(outcomes):
        print(note)
    for precision, outcome in outcomes.items():
        if not outcome.complaint:
            print(f"next  {shlex.join([*again, '--variant', precision])}")
