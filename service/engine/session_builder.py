"""Builds the sessions of a version, in the configured layout or in the one that performs better."""

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import msgspec

from convoy.service.config import InstancesSetting
from convoy.service.engine import layouts
from convoy.service.engine import profile as profiles
from convoy.service.engine import session as sessions
from convoy.service.engine.instances import Instances, Together
from convoy.service.engine.layouts import Layout
from convoy.service.engine.null_session import Sleeping
from convoy.service.engine.profile import Profile
from convoy.service.engine.profiling import Shape, prepare
from convoy.service.engine.providers import CPU, GPU, Device, gpu_offered
from convoy.service.engine.session import Session
from convoy.service.machine import cores

Built = tuple[Instances, tuple[Profile, ...]]
ShapesOf = Callable[[Session], Mapping[Shape, int]]


def build(file: Path, device: Device, wanted: InstancesSetting, objective: float, shapes: ShapesOf) -> Built:
    """The sessions of a model file, and their profiles. Every size of every expected shape has run in each session.

    wanted     number of sessions; "auto": on the CPU, the layout with clearly higher throughput by the profiles, which
               are measured if missing
    objective  target latency in seconds
    shapes     the expected shapes, and the maximum batch size of each
    Raises BadModelFile, BadMetadata, BadConfig.
    """
    threads = device.config.threads or cores()
    asleep = device.config.sleep_ms is not None  # no core is used then
    candidates = layouts.layouts(1 if asleep and wanted == "auto" else wanted, threads, gpu_offered(device.provider))
    if len(candidates) == 1:
        return _build(file, device, candidates[0], shapes)
    chosen = layouts.known(_of_this_machine(file, device, threads), candidates, objective)
    if chosen is not None:
        return _build(file, device, chosen, shapes)
    one = _build(file, device, candidates[0], shapes)
    if not one[1]:  # nothing to compare
        return one
    several = _build(file, device, candidates[1], shapes)
    return several if layouts.choose(one[1], several[1], objective) else one


def load_all(file: Path, device: Device, layout: Layout) -> Instances:
    """The sessions of a layout."""
    return Instances([_load(file, device, layout.threads) for _ in range(layout.instances)])


def measured(instances: Instances) -> Session:
    """The session to measure: all instances concurrently. On a GPU, in their threads, to which CUDA graphs are tied."""
    session = instances.session
    return Together(instances) if len(instances) > 1 or session.provider in GPU else session


def _build(file: Path, device: Device, layout: Layout, shapes: ShapesOf) -> Built:
    instances = load_all(file, device, layout)
    largest = shapes(instances.session)
    number, threads = layout
    made = prepare(measured(instances), file, largest, device.config.device, threads, number, device.settings)
    padding: dict[Hashable, dict[int, int]] = {each.key: each.padding for each in made if each.padding}
    for instance in instances.all:
        instance.session.padding = padding
    return instances, made


def _load(file: Path, device: Device, threads: int) -> Session:
    session = sessions.load_on(file, device, threads)
    if device.config.sleep_ms is None:
        return session
    return Sleeping(session, *(milliseconds / 1000 for milliseconds in device.config.sleep_ms))


def _of_this_machine(file: Path, device: Device, threads: int) -> list[Profile]:
    """The profiles next to a model file that were measured on this machine, in any layout."""
    there = profiles.read(file.parent)
    if not there:
        return []
    this = profiles.machine(file, CPU, device.config.device, threads, 1, device.settings)
    return [each for each in there if msgspec.structs.replace(each.machine, instances=1, threads=threads) == this]
