"""R1: changed ONNX files in a repository that is served: each is refused with a reason or serves, beside the others."""

import random
import shutil
import time
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from convoy.service.client.client import Client
from convoy.service.client.results import Model, ServerError
from tests.reliability import leaks, mutation
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.siege import Siege, with_a_death
from tests.service import networks

_TOGETHER = 6  # files that are tried side by side
_SECONDS = 120.0  # for all of them to be loaded or refused
_SETTINGS = ("repository.trial_seconds=10", "repository.trial_memory_mib=2048", "repository.poll_seconds=0.5")
_TYPES = (
    "Relu",
    "Sum",
    "Split",
    "Identity",
    "Conv",
    "Gather",
    "Unique",
    "Loop",
    "Reshape",
    "Nothing",
    "If",
    "Resize",
    "Pad",
)
_SIDES = (-1, 0, 1, 3, 2**31 - 1, 2**31, 2**62, 2**63 - 1)

Change = Callable[[random.Random, onnx.ModelProto], None]


def _node(rng: random.Random, model: onnx.ModelProto) -> None:
    node = rng.choice(model.graph.node)
    match rng.randrange(5):
        case 0:
            node.op_type = rng.choice(_TYPES)
        case 1:
            node.input.append(rng.choice(("", "image", "nowhere", *node.output)))
        case 2:
            del node.input[rng.randrange(len(node.input)) :]
        case 3:
            node.output.append(rng.choice(("", "more", *node.input)))
        case _:
            node.attribute.add(name=rng.choice(("axis", "to", "perm", "body")), i=rng.choice(_SIDES), type=2)


def _tensor(rng: random.Random, model: onnx.ModelProto) -> None:
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        match rng.randrange(3):
            case 0:
                tensor.dims[:] = [rng.choice(_SIDES) for _ in range(rng.randrange(5))]
            case 1:
                tensor.data_type = rng.randrange(25)
            case _:
                tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]


def _shape(rng: random.Random, model: onnx.ModelProto) -> None:
    value = rng.choice((*model.graph.input, *model.graph.output)).type.tensor_type
    if rng.random() < 0.5 and value.shape.dim:
        rng.choice(value.shape.dim).dim_value = rng.choice(_SIDES)
    else:
        value.elem_type = rng.choice((0, TensorProto.STRING, TensorProto.FLOAT16, TensorProto.INT64, 99))


def _order(rng: random.Random, model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    model.graph.node.extend(nodes)
    del model.graph.node[rng.choice((0, len(nodes))) : len(nodes)]


def _frame(rng: random.Random, model: onnx.ModelProto) -> None:
    match rng.randrange(4):
        case 0:
            model.opset_import[0].version = rng.choice((0, 1, 7, 99, 2**62))
        case 1:
            model.ir_version = rng.choice((0, 1, 99, 2**62))
        case 2:
            for entry in model.metadata_props:
                entry.value = mutation.scrambled(rng, entry.value.encode()).decode(errors="replace")
        case _:
            model.graph.node.add(op_type="Relu", input=["x"], output=["y"], domain=rng.choice(("", "com.nowhere")))


_CHANGES: tuple[Change, ...] = (_node, _node, _tensor, _shape, _order, _frame)
_MODELS = (
    networks.classifier,
    networks.segmenter,
    networks.waves,
    networks.doubler,
    networks.compressor,
    networks.with_default,
)


def changed(rng: random.Random) -> bytes:
    """A small network that is damaged: as a graph, as a message, or anywhere in its bytes."""
    model = rng.choice(_MODELS)()
    chance = rng.random()
    if chance < 0.6:
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice(_CHANGES)(rng, model)
        return model.SerializeToString()
    return (mutation.message if chance < 0.85 else mutation.scrambled)(rng, model.SerializeToString())


def run(trials: int, seed: int) -> Tally:
    """One trial is one file."""
    rng, count = random.Random(f"files {seed}"), Count()
    with Siege(count, seed, _SETTINGS) as siege, Client(siege.server.grpc) as client:
        for first in range(0, trials, _TOGETHER):
            names = [f"m{number}" for number in range(first, min(trials, first + _TOGETHER))]
            for name in names:
                networks.save_bytes(changed(rng), siege.repository, name)
            found = _wait_for(client, names)
            for name in names:
                model = found.get(name)
                wrong = _fault_in(client, model, str(siege.root))
                count.bad(f"file {name} of seed {seed}: {wrong}") if wrong else count.good()
                count.see("share that serves", sum(each.state == "ready" for each in found.values()) / len(names))
                shutil.rmtree(siege.repository / name)
        restarts = siege.server.total("convoy_engine_restarts_total")
        if restarts:
            count.also_bad(f"seed {seed}: {restarts:g} engines were started again")
    return count.tally()


def _wait_for(client: Client, names: list[str]) -> dict[str, Model]:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        found = {model.model: model for model in client.models() if model.model in names}
        if len(found) == len(names) and all(model.state != "loading" for model in found.values()):
            break
        time.sleep(0.05)
    return found


def _fault_in(client: Client, model: Model | None, root: str) -> str:
    if model is None:
        return "it is not listed"
    if model.state == "loading":
        return "it is still loading"
    if model.state == "ready":
        return _call(client, model)
    if not model.reason:
        return "it has no reason"
    if (
        root in model.reason
        or "Traceback" in model.reason
        or leaks.found(model.reason).startswith(("an address", "a stack"))
    ):
        return f"the reason says too much: {model.reason!r}"
    return ""


def _call(client: Client, model: Model) -> str:
    """Asks what serves for one image: whatever the answer, the engine lives."""
    try:
        if model.task == "classification" and model.tensor is None:
            client.classify(np.zeros((networks.SIDE, networks.SIDE), np.uint8), model.model)
    except ServerError as error:
        return leaks.found(str(error))
    except Exception as error:
        return repr(error)
    return ""


def control(seed: int) -> Tally:
    """A process that dies."""
    return with_a_death("engine", seed)


PROBE = Probe(
    "R1",
    "No file in the repository ends an engine, and each is refused with a reason or serves",
    "mutated ONNX files",
    1_000,
    100,
    run,
    control,
)
