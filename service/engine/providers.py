"""The onnxruntime execution providers of a session, and their options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import onnxruntime

from convoy.service.config import MIB, EngineConfig
from convoy.service.errors import BadModelFile

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
GPU = (CUDA, TENSORRT)

_CACHE = "tensorrt"  # folder of the engines that TensorRT has built, next to the model file


@dataclass(frozen=True, slots=True)
class Device:
    """The device settings of a model. `provider` is auto, cpu or cuda; `most` is the largest batch size."""

    provider: str
    config: EngineConfig
    most: int = 1

    @property
    def settings(self) -> str:
        """The settings that affect the time of a batch, as text."""
        said = {"graphs": self.config.cuda_graphs, self.config.tensorrt: self.config.tensorrt != "off"}
        return ", ".join(name for name, set_ in said.items() if set_)

    @property
    def gpu_options(self) -> list[str]:
        """The names of the settings that require a GPU."""
        said = {
            "engine.gpu_memory_mib": self.config.gpu_memory_mib > 0,
            "engine.cuda_graphs": self.config.cuda_graphs,
            "engine.tensorrt": self.config.tensorrt != "off",
        }
        return [name for name, set_ in said.items() if set_]


def with_cache(config: EngineConfig, folder: Path) -> EngineConfig:
    """The settings, with `folder`, a version's own, for the engines of TensorRT where no other one is configured."""
    if config.tensorrt == "off" or config.tensorrt_cache:
        return config
    return msgspec.structs.replace(config, tensorrt_cache=str(folder / _CACHE))


Options = list[str | tuple[str, dict[str, str]]]


def providers(device: Device, file: Path) -> Options:
    """Providers with their options, the preferred one first. Raises BadModelFile if it is not available."""
    offered = onnxruntime.get_available_providers()
    if device.provider == "cuda" and CUDA not in offered:
        raise BadModelFile(why_not(CUDA))
    if device.provider == "cpu" or CUDA not in offered:
        return [CPU]
    cuda = (CUDA, _cuda_options(device.config))
    if device.config.tensorrt == "off":
        return [cuda, CPU]
    if TENSORRT not in offered:
        raise BadModelFile(why_not(TENSORRT))
    return [(TENSORRT, {**_tensorrt_options(device.config, file), **_ranges(file, device.most)}), cuda, CPU]


def check(requested: str, providers: Options, got: str) -> None:
    """Raises BadModelFile if a session does not run on the provider that was requested."""
    first = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
    if got != first and (requested == "cuda" or first == TENSORRT):
        raise BadModelFile(why_not(first))


def record_nodes(options: onnxruntime.SessionOptions) -> None:
    """Lets a session that is built with these options tell `nodes`."""
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")


def nodes(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """How many nodes of the optimized network each provider runs. Empty if that was not recorded.

    A session on a GPU leaves to the CPU what its provider does not implement, and small computations of shapes.
    """
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # onnxruntime's errors share no base class; it is for show only
        return {}
    counts: dict[str, int] = {}
    for part in parts:
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts


def gpu_offered(requested: str) -> bool:
    """Whether a model with this provider setting will be tried on a GPU."""
    return requested != "cpu" and CUDA in onnxruntime.get_available_providers()


def why_not(provider: str) -> str:
    """An error message that says what is missing."""
    offered = onnxruntime.get_available_providers()
    if provider == TENSORRT:
        if TENSORRT not in offered:
            return f"engine.tensorrt is set, but this onnxruntime offers only {', '.join(offered)}"
        return "engine.tensorrt is set, but TensorRT could not be used: is its library installed?"
    if CUDA not in offered:
        return (
            f"provider cuda was requested, but this onnxruntime offers only {', '.join(offered)}: "
            "install onnxruntime-gpu"
        )
    return "provider cuda was requested, but no CUDA device could be used: see the log, or set engine.provider=cpu"


@cache
def preload() -> None:
    """Load CUDA and cuDNN from their Python packages, if installed. Missing libraries are reported once."""
    if CUDA in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()


def _cuda_options(config: EngineConfig) -> dict[str, str]:
    # Each session has its own stream and arena.
    options = {
        "device_id": str(config.device),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if config.gpu_memory_mib:
        options["gpu_mem_limit"] = str(config.gpu_memory_mib * MIB)
    if config.cuda_graphs:
        options["enable_cuda_graph"] = "1"
    return options


def _tensorrt_options(config: EngineConfig, file: Path) -> dict[str, str]:
    # An engine takes minutes to build, so engines are cached per GPU and TensorRT version.
    folder = str(Path(config.tensorrt_cache) if config.tensorrt_cache else file.parent / _CACHE)
    return {
        "device_id": str(config.device),
        "trt_fp16_enable": "1" if config.tensorrt == "fp16" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }


def _ranges(file: Path, most: int) -> dict[str, str]:
    """The batch sizes that one engine is built for; otherwise TensorRT builds a new engine for each larger batch."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    inputs = onnxruntime.InferenceSession(str(file), options, providers=[CPU]).get_inputs()
    shapes = {given.name: given.shape for given in inputs}
    if any(not isinstance(side, int) for shape in shapes.values() for side in shape[1:]):
        return {}  # accepts any size: the sizes are not known in advance
    return {
        "trt_profile_min_shapes": _shapes(shapes, 1),
        "trt_profile_opt_shapes": _shapes(shapes, most),
        "trt_profile_max_shapes": _shapes(shapes, most),
    }


def _shapes(shapes: Mapping[str, Sequence[int | str]], size: int) -> str:
    return ",".join(
        f"{name}:" + "x".join(str(side if isinstance(side, int) else size) for side in shape)
        for name, shape in shapes.items()
    )
