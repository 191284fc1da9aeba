"""Administers a server with NVIDIA's tritonclient and prints, as JSON, what it was told.

Run by the Python of an environment that has tritonclient, and nothing of Convoy: `python administer.py ADMIN GRPC`,
both of them HOST:PORT. The server has the models `doubler` (float32 (n, 4), twice that) and `letters` (ten classes).
"""

import json
import sys
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, shared_memory

VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)
SECONDS = 30.0  # for one answer


def main(admin_target: str, grpc_target: str) -> None:
    with InferenceServerClient(admin_target) as admin, InferenceServerClient(grpc_target) as ordinary:
        told = {
            "extensions": admin.get_server_metadata(as_json=True)["extensions"],
            "models": models(admin, ordinary),
            "memory": memory(admin, ordinary),
            "log": settings_of_log(admin),
            "traces": settings_of_traces(admin),
            "parameters": parameters(ordinary),
            "refused": refused(admin, ordinary),
        }
    print(json.dumps(told))


def states(client: InferenceServerClient) -> dict[str, str]:
    index = client.get_model_repository_index(as_json=True)["models"]
    return {row["name"]: f"{row['state']} {row.get('reason', '')}".strip() for row in index}


def models(admin: InferenceServerClient, ordinary: InferenceServerClient) -> list[Any]:
    """The states before, after an unload, and after a load; and whether the model is ready each time."""
    told: list[Any] = [states(ordinary), ordinary.is_model_ready("letters")]
    admin.unload_model("letters", unload_dependents=True)
    told += [states(ordinary), ordinary.is_model_ready("letters")]
    admin.load_model("letters")
    return [*told, states(ordinary), ordinary.is_model_ready("letters")]


def memory(admin: InferenceServerClient, ordinary: InferenceServerClient) -> dict[str, Any]:
    key = f"/triton-{uuid.uuid4()}"
    region = shared_memory.create_shared_memory_region("mine", key, 4096)
    try:
        admin.unregister_system_shared_memory()
        admin.register_system_shared_memory("mine", key, 4096)
        shared_memory.set_shared_memory_region(region, [VALUES])
        given, wanted = InferInput("x", [2, 4], "FP32"), InferRequestedOutput("y")
        given.set_shared_memory("mine", VALUES.nbytes)
        wanted.set_shared_memory("mine", VALUES.nbytes, offset=1024)
        result = ordinary.infer("doubler", [given], outputs=[wanted, InferRequestedOutput("total")])
        output = result.get_output("y")  # as JSON, it would return nothing
        status = admin.get_system_shared_memory_status(as_json=True)
        told = {
            "y": shared_memory.get_contents_as_numpy(region, np.float32, [2, 4], offset=1024).tolist(),
            "total": result.as_numpy("total").tolist(),
            "shape": list(output.shape),
            "status": {**status["regions"]["mine"], "key": status["regions"]["mine"]["key"] == key},
        }
        admin.unregister_system_shared_memory("mine")
        told["after"] = admin.get_system_shared_memory_status(as_json=True)
        told["unregistered"] = refusal(lambda: ordinary.infer("doubler", [given], outputs=[wanted]))
        return told
    finally:
        shared_memory.destroy_shared_memory_region(region)


def settings_of_log(admin: InferenceServerClient) -> list[Any]:
    verbose = admin.update_log_settings({"log_verbose_level": 1}, as_json=True)
    quiet = admin.update_log_settings({"log_verbose_level": 0, "log_info": True}, as_json=True)
    return [verbose["settings"], quiet["settings"], admin.get_log_settings(as_json=True)["settings"]]


def settings_of_traces(admin: InferenceServerClient) -> list[Any]:
    on = admin.update_trace_settings("doubler", {"trace_level": ["TIMESTAMPS"], "trace_rate": "5"}, as_json=True)
    others = admin.get_trace_settings(as_json=True)
    off = admin.update_trace_settings("doubler", {"trace_level": None, "trace_rate": None}, as_json=True)
    return [on["settings"], others["settings"], off["settings"]]


def parameters(ordinary: InferenceServerClient) -> dict[str, Any]:
    """Answers to a timeout of 0, which is none, and to priorities; a refusal for one that has passed."""

    def infer(**given: int) -> list[list[float]]:
        tensor = InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(VALUES)
        answer = ordinary.infer("doubler", [tensor], client_timeout=SECONDS, **given).as_numpy("y")
        rows: list[list[float]] = answer.tolist()
        return rows

    answers = [infer(timeout=0), infer(timeout=30_000_000), infer(priority=1), infer(priority=2**64 - 1)]
    return {"answers": answers, "late": refusal(lambda: infer(timeout=1))}


def refused(admin: InferenceServerClient, ordinary: InferenceServerClient) -> dict[str, list[str]]:
    calls: dict[str, Callable[[], Any]] = {
        "load of nobody": lambda: admin.load_model("nobody"),
        "load with a configuration": lambda: admin.load_model("letters", config="{}"),
        "load with a file": lambda: admin.load_model("letters", config="{}", files={"file:1/model.onnx": b"x"}),
        "file of the log": lambda: admin.update_log_settings({"log_file": "/tmp/log"}),
        "file of traces": lambda: admin.update_trace_settings(settings={"trace_file": "/tmp/trace"}),
        "load on the other port": lambda: ordinary.load_model("letters"),
        "region on the other port": lambda: ordinary.register_system_shared_memory("mine", "/mine", 1),
        "memory of a GPU": lambda: admin.register_cuda_shared_memory("mine", b"x" * 64, 0, 1),
    }
    return {name: refusal(call) for name, call in calls.items()}


def refusal(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["answered", ""]


if __name__ == "__main__":
    main(*sys.argv[1:])
