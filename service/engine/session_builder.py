"""Loads a version: its sessions, in the configured layout or in the one that performs better, and how it is served."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from convoy.service import buckets
from convoy.service.buckets import NONE, Buckets
from convoy.service.config import Config, InstancesSetting, ModelConfig
from convoy.service.engine import layouts, profiles
from convoy.service.engine import session as sessions
from convoy.service.engine.instances import Instances, Together
from convoy.service.engine.layouts import Layout
from convoy.service.engine.learned_buckets import pays
from convoy.service.engine.null_session import Sleeping
from convoy.service.engine.profiles import Profile
from convoy.service.engine.profiling import Shape, prepare, shapes
from convoy.service.engine.providers import CPU, GPU, Device, gpu_offered, with_cache
from convoy.service.engine.row_independence import settle
from convoy.service.engine.scheduler.request_queue import Limits
from convoy.service.engine.session import Session
from convoy.service.machine import cores
from convoy.service.metadata import Document
from convoy.service.repository import Stamp

Built = tuple[Instances, tuple[Profile, ...]]
ShapesOf = Callable[[Session], Mapping[Shape, int]]

DEFAULT_OBJECTIVE = 0.1  # seconds
_USUAL = (256, 256)  # (height, width) in pixels; assumed if a model accepts any size
_RUNS = 5  # of one image; the default objective leaves time for this many


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that can run."""

    instances: Instances
    session: Session  # one of theirs, to read the network's inputs and outputs from
    stamp: Stamp
    config: ModelConfig
    limits: Limits
    profiles: tuple[Profile, ...]  # of the shapes that are known in advance to be requested
    allowed: float = math.inf  # seconds in which a request without a deadline must be answered
    file: Path = Path()  # that it was loaded from
    buckets: Buckets = NONE
    learns: bool = False  # whether it learns its buckets from the sizes of arriving images


def load(file: Path, stamp: Stamp, config: Config, settings: ModelConfig, folder: Path | None = None) -> Loaded:
    """Loads a version and measures or reads its profiles. `settings` are the model's own, which precede `config`.
    `folder` is the version's own, for what is kept beside its file; by default that of `file`.

    Raises BadModelFile, BadMetadata, BadConfig.
    """
    batching = config.batching
    most = settings.max_batch_size or batching.max_batch_size
    objective_ms = settings.latency_objective_ms or batching.latency_objective_ms
    objective = DEFAULT_OBJECTIVE if objective_ms is None else objective_ms / 1000
    folder = folder or file.parent
    device = Device(settings.provider or config.engine.provider, with_cache(config.engine, folder), most)
    number = settings.instances or config.engine.instances
    instances, measured = build(file, device, number, objective, partial(_shapes, config, settings, most), folder)
    settle(instances, settings.batched)
    session = instances.session
    delay_ms = batching.max_queue_delay_ms if settings.max_queue_delay_ms is None else settings.max_queue_delay_ms
    joins = session.batched and not session.apart
    limits = Limits(
        max_batch_size=most if joins else 1,
        max_queue_delay=delay_ms / 1000,
        max_queue=settings.max_queue or batching.max_queue,
        objective=_objective(measured) if objective_ms is None else objective,
        policy=settings.policy or batching.policy,
        instances=len(instances),
    )
    return Loaded(
        instances,
        session,
        stamp,
        settings,
        limits,
        measured,
        file=file,
        allowed=math.inf if objective_ms is None else objective,
        buckets=_buckets(config, settings, session.document),
        learns=joins and _may_learn(config, settings, session.document) and pays(measured[0].seconds),
    )


def _objective(measured: Sequence[Profile]) -> float:
    """Returns the latency objective in seconds if none is configured."""
    return max(DEFAULT_OBJECTIVE, *(_RUNS * profile.seconds[1] for profile in measured), 0.0)


def _buckets(config: Config, settings: ModelConfig, document: Document | None) -> Buckets:
    pixels = config.limits.max_input_pixels
    return buckets.configured(config.batching.buckets, settings.buckets, document, pixels)


def _shapes(config: Config, settings: ModelConfig, most: int, session: Session) -> Mapping[Shape, int]:
    """Returns the shapes that are known in advance to be requested, and the maximum batch size of each."""
    document = session.document
    sizes = _buckets(config, settings, document).sizes
    if document is not None and _may_learn(config, settings, document):
        sizes = (buckets.rounded(document.image, *_USUAL),)  # shows whether batching pays
    return shapes(document, sizes, most if session.batched else 1, config.batching.max_batch_pixels)


def _may_learn(config: Config, settings: ModelConfig, document: Document | None) -> bool:
    return (settings.buckets or config.batching.buckets) == "auto" and buckets.accepts_buckets(document)


def build(
    file: Path,
    device: Device,
    number: InstancesSetting,
    objective: float,
    shapes_of: ShapesOf,
    folder: Path | None = None,
) -> Built:
    """The sessions of a model file, and their profiles. Every size of every expected shape has run in each session.

    number     of sessions; "auto": on the CPU, the layout with clearly higher throughput by the profiles, which
               are measured if missing
    objective  target latency in seconds
    shapes_of  the expected shapes, and the maximum batch size of each
    folder     where the profiles are; by default that of `file`
    Raises BadModelFile, BadMetadata, BadConfig.
    """
    folder = folder or file.parent
    threads = device.config.threads or cores()
    asleep = device.config.sleep_ms is not None  # no core is used then
    candidates = layouts.layouts(1 if asleep and number == "auto" else number, threads, gpu_offered(device.provider))
    if len(candidates) == 1:
        return _build(file, device, candidates[0], shapes_of, folder)
    stored = _of_this_machine(file, folder, device, threads)
    # Times that were measured while one layout served cannot be compared with those of the other: measure both.
    contradicted = any(each.revised for each in stored)
    chosen = None if contradicted else layouts.known(stored, candidates, objective)
    if chosen is not None:
        return _build(file, device, chosen, shapes_of, folder)
    one = _build(file, device, candidates[0], shapes_of, folder, again=contradicted)
    if not one[1]:  # nothing to compare
        return one
    several = _build(file, device, candidates[1], shapes_of, folder, again=contradicted)
    return several if layouts.choose(one[1], several[1], objective) else one


def load_all(file: Path, device: Device, layout: Layout) -> Instances:
    """The sessions of a layout."""
    return Instances([_load(file, device, layout.threads) for _ in range(layout.instances)])


def measured(instances: Instances) -> Session:
    """The session to measure: all instances concurrently. On a GPU, in their threads, to which CUDA graphs are tied."""
    session = instances.session
    return Together(instances) if len(instances) > 1 or session.provider in GPU else session


def _build(
    file: Path, device: Device, layout: Layout, shapes_of: ShapesOf, folder: Path, *, again: bool = False
) -> Built:
    instances = load_all(file, device, layout)
    largest = shapes_of(instances.session)
    on = device.config.device, layout.threads, layout.instances, device.settings
    measured_profiles = prepare(measured(instances), file, largest, *on, folder, again=again)
    padding: dict[Hashable, dict[int, int]] = {each.key: each.padding for each in measured_profiles if each.padding}
    for instance in instances.all:
        instance.session.padding = padding
    return instances, measured_profiles


def _load(file: Path, device: Device, threads: int) -> Session:
    session = sessions.load_on(file, device, threads)
    if device.config.sleep_ms is None:
        return session
    return Sleeping(session, *(milliseconds / 1000 for milliseconds in device.config.sleep_ms))


def _of_this_machine(file: Path, folder: Path, device: Device, threads: int) -> list[Profile]:
    """The profiles in a version's folder that were measured on this machine, in any layout."""
    stored = profiles.read(folder)
    if not stored:
        return []
    this = profiles.machine(file, CPU, device.config.device, threads, 1, device.settings)
    return [each for each in stored if msgspec.structs.replace(each.machine, instances=1, threads=threads) == this]
