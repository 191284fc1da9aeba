"""The server's configuration: one frozen struct per section, filled once at start from a TOML file and `--set`."""

import itertools
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from convoy.service.errors import BadConfig
from convoy.service.metadata import Side
from convoy.service.text import NoText, decoded

Port = Annotated[int, Meta(ge=0, le=65_535)]
DEFAULT_TARGET = "127.0.0.1:8001"  # for clients: where a server with the default settings listens
MIB = 1 << 20
KIB = 1 << 10
_MOST_AUTO = 8  # front ends: enough to saturate one engine
_EXAMPLE = "such as batching.max_batch_size=16"
T = TypeVar("T")


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Listening addresses and shutdown times."""

    host: str = "127.0.0.1"
    grpc_port: Port = 8001
    http_port: Port = 8000
    metrics_port: Port = 8002
    # Processes that serve gRPC, all on one port; "auto": one for every four cores.
    frontends: Annotated[int, Meta(ge=1, le=64)] | Literal["auto"] = 1
    lame_duck_seconds: Annotated[float, Meta(ge=0, le=300)] = 1.0  # still accepts requests after SIGTERM
    grace_seconds: Annotated[float, Meta(ge=0, le=3600)] = 20.0  # for accepted requests to be answered
    # How long the series of a version remain after it stops serving, so that a few scrapes still find its final values.
    keep_metrics_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 600.0
    # The shortest time between two keepalive pings of a client; a client that pings faster is disconnected after a few.
    min_ping_seconds: Annotated[float, Meta(ge=0, le=3600)] = 1.0
    # A connection older than this accepts no more calls, so that clients connect again, perhaps to another replica; its
    # calls may take the grace to end. 0: no limit.
    max_connection_age_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    max_connection_grace_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    max_connection_idle_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0  # without a call; 0: no limit
    max_connection_calls: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # concurrent; 0: as many as a front end accepts
    # A process whose loop is silent for so long is killed and replaced; 0: never. Not while a debugger holds it.
    heartbeat_seconds: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    # What speaks gRPC; "auto": libnghttp2 where it is installed, else grpcio, which takes several times the CPU time.
    transport: Literal["auto", "nghttp2", "grpcio"] = "auto"
    # Of answers, for clients that accept it. It costs CPU time, and pays where the network is slower than the server.
    compression: Literal["none", "gzip", "deflate"] = "none"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"  # auto: text on a terminal, JSON elsewhere

    def front_ends(self, cores: int) -> int:
        """The number of front ends on a machine with `cores` cores.

        A front end's event loop uses at most one core; its decoding threads and the engine use the others. So `auto` is
        one for every four cores, and at least one: on two cores a second front end would only take CPU time from them.
        """
        return max(1, min(cores // 4, _MOST_AUTO)) if self.frontends == "auto" else self.frontends

    def __post_init__(self) -> None:
        ports = {"grpc_port": self.grpc_port, "http_port": self.http_port, "metrics_port": self.metrics_port}
        for (one, port), (other, same) in itertools.combinations(ports.items(), 2):
            if port and port == same:
                raise ValueError(f"server.{one} and server.{other} are both {port}, want different ports")


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one request and of one front end."""

    max_message_bytes: Annotated[int, Meta(ge=1024, le=2**31 - 1)] = 64 * MIB
    # All headers of one call together: single sign-on tokens and headers that a mesh adds can exceed 16 kB.
    max_metadata_bytes: Annotated[int, Meta(ge=1024, le=16 * MIB)] = 64 * KIB
    max_pixels: Annotated[int, Meta(ge=1)] = 50_000_000  # height times width of one image, as it is sent
    max_input_pixels: Annotated[int, Meta(ge=1)] = 4 * MIB  # the same at the input of a model that accepts any size
    max_images: Annotated[int, Meta(ge=1, le=65_536)] = 256  # in one request
    max_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024  # in flight in one front end
    max_stream_requests: Annotated[int, Meta(ge=1, le=65_536)] = 128  # in flight in one stream: no more are read
    # In which a caller must send some of a request that it has begun; 0: it has all the time.
    stall_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    # Bytes of requests in flight in one front end; 0: as many as `slot_bytes`, at most a quarter of memory in total.
    inflight_bytes: Annotated[int, Meta(ge=0, le=1 << 46)] = 0
    slot_bytes: Annotated[int, Meta(ge=MIB, le=1 << 46)] = (
        512 * MIB
    )  # shared memory of one front end, allocated on first use
    decode_threads: Annotated[int, Meta(ge=0, le=256)] = 0  # of one front end; 0: one per core

    def bytes_in_flight(self, memory: int, front_ends: int) -> int:
        """`inflight_bytes`, with 0 resolved for a machine with `memory` bytes. The largest message always fits."""
        share = memory // (4 * front_ends)
        return self.inflight_bytes or max(self.max_message_bytes, min(self.slot_bytes, share))

    def __post_init__(self) -> None:
        if 0 < self.inflight_bytes < self.max_message_bytes:
            raise ValueError(
                f"limits.inflight_bytes is {self.inflight_bytes}, want at least limits.max_message_bytes, "
                f"{self.max_message_bytes}"
            )


# Which versions of a model serve: the N highest, all, or those listed.
VersionsSetting = (
    Annotated[str, Meta(pattern="^(all|latest [1-9][0-9]{0,2})$")]
    | Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1, max_length=64)]
)
InstancesSetting = Annotated[int, Meta(ge=1, le=64)] | Literal["auto"]
PolicyName = Literal["deferred", "eager", "timeout", "aimd", "nexus"]
# Sizes that images of any size are padded to, [height, width] each; "auto": learned from the traffic.
BucketsSetting = Literal["none", "auto"] | Annotated[tuple[tuple[Side, Side], ...], Meta(min_length=1, max_length=32)]


class BatchingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a batch closes, and which requests it contains."""

    policy: PolicyName = "deferred"
    # Target latency of a request without a deadline. If set, requests predicted to be later are refused. If not set, it
    # is 100 ms or five times the time of one image, whichever is longer, and affects only order and batch size.
    latency_objective_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None

    max_batch_size: Annotated[int, Meta(ge=1, le=1024)] = 32  # images
    max_batch_pixels: Annotated[int, Meta(ge=1)] = 8 * MIB  # for a model that accepts any size: bounds a run's memory
    max_queue_delay_ms: Annotated[float, Meta(ge=0, le=10_000)] = 5.0  # only while more images are on their way
    max_queue: Annotated[int, Meta(ge=1, le=10_000_000)] = 1024  # waiting images, per model
    buckets: BucketsSetting = "none"  # for segmentation models of any size


DeviceNumber = Annotated[int, Meta(ge=0, le=1023)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device, and how onnxruntime uses it."""

    provider: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where it works; cuda: not ready without it
    device: DeviceNumber = 0  # CUDA device
    # Several devices, with one engine process each; "auto": every CUDA device. Empty: `device` alone.
    devices: tuple[DeviceNumber, ...] | Literal["auto"] = ()
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0  # of onnxruntime, per model over all devices; 0: one per core
    # Sessions of each model, which run concurrently; "auto": on the CPU, the number that performs best.
    instances: InstancesSetting = 1
    gpu_memory_mib: Annotated[int, Meta(ge=0, le=1 << 24)] = 0  # per session; 0: no limit
    cuda_graphs: bool = False  # records each batch size once and replays it; for networks of very short steps
    tensorrt: Literal["off", "fp32", "fp16"] = "off"  # on CUDA; its engines are cached
    tensorrt_cache: str = ""  # cache folder; "": next to the model file
    # A run that takes longer than this, and ten times as long as predicted, hangs: the engine is replaced. 0: never.
    run_limit_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 3.0
    # The same for the first runs of a shape, which may allocate, compile and tune.
    first_run_limit_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    # How often, in an idle moment, a version repeats the example in its file; 0: only when it is loaded.
    check_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    # For measurements of the server itself: no network runs, a batch of n images takes fixed + n * each ms.
    sleep_ms: tuple[Annotated[float, Meta(ge=0)], Annotated[float, Meta(ge=0)]] | None = None

    def device_numbers(self, cuda_devices: Callable[[], int]) -> tuple[int, ...]:
        """All devices. `cuda_devices` returns their count; it is called only for "auto"."""
        if self.devices == "auto":
            count = 0 if self.provider == "cpu" else cuda_devices()
            return tuple(range(count)) or (self.device,)
        return self.devices or (self.device,)

    def of_device(self, device: int, devices: int, cores: int) -> "EngineConfig":
        """The configuration of one device's engine. Engines share the threads because they run on the same cores."""
        threads = max(1, (self.threads or cores) // devices) if devices > 1 else self.threads
        return msgspec.structs.replace(self, device=device, devices=(), threads=threads)

    def __post_init__(self) -> None:
        if self.devices != "auto" and len(set(self.devices)) < len(self.devices):
            raise ValueError(f"engine.devices are {list(self.devices)}, want each of them once")
        if self.devices and self.device:
            raise ValueError("engine.device and engine.devices are both set, want one of them")
        if self.provider == "cpu" and (self.gpu_memory_mib or self.cuda_graphs or self.tensorrt != "off"):
            raise ValueError("engine.gpu_memory_mib, cuda_graphs and tensorrt need a GPU, but engine.provider is 'cpu'")
        if self.cuda_graphs and self.tensorrt != "off":
            raise ValueError("engine.cuda_graphs and engine.tensorrt exclude each other")
        if self.tensorrt_cache and self.tensorrt == "off":
            raise ValueError("engine.tensorrt_cache is set, but engine.tensorrt is 'off'")


class RepositoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model repository is watched, and what its files may do."""

    poll_seconds: Annotated[float, Meta(gt=0, le=3600)] = 5.0  # a full scan, in addition to file system notifications
    versions: VersionsSetting = "latest 1"
    # A new or changed version first loads and runs in a process of its own, for at most this long; 0: it does not.
    trial_seconds: Annotated[float, Meta(ge=0, le=3600)] = 120.0
    trial_memory_mib: Annotated[int, Meta(ge=0, le=1 << 24)] = 0  # of that process; 0: the memory of the machine
    # Folder for copies of the files that serve and for results of trials; "": `convoy` in the user's cache folder.
    cache: str = ""


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encryption of all three ports: PEM files, which are read again when they change. Not set: none."""

    certificate: str = ""  # the server's, followed by those between it and its root
    key: str = ""
    client_ca: str = ""  # every client needs a certificate that one of these has signed

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            one, other = ("certificate", "key") if self.certificate else ("key", "certificate")
            raise ValueError(f"tls.{one} is set, but tls.{other} is not, want both or neither")
        if self.client_ca and not self.certificate:
            raise ValueError("tls.client_ca is set, but tls.certificate and tls.key are not")


class AccessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may call."""

    callers: str = ""  # a TOML file, which is read again when it changes: see access.py; not set: everybody may call
    public: tuple[Literal["health", "reflection", "probes", "metrics"], ...] = ()  # needs neither token nor certificate


class QuotasConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one caller may send to one front end: a caller of `access.callers`, else an address."""

    requests_per_second: Annotated[float, Meta(ge=0, le=1e9)] = 0.0  # each request of a stream counts; 0: no limit
    bytes_per_second: Annotated[float, Meta(ge=0, le=1e15)] = 0.0  # of requests; 0: no limit
    burst_seconds: Annotated[float, Meta(gt=0, le=3600)] = 1.0  # as much may come at once as in this time


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of a server."""

    server: ServerConfig = ServerConfig()
    tls: TlsConfig = TlsConfig()
    access: AccessConfig = AccessConfig()
    quotas: QuotasConfig = QuotasConfig()
    limits: LimitsConfig = LimitsConfig()
    batching: BatchingConfig = BatchingConfig()
    engine: EngineConfig = EngineConfig()
    repository: RepositoryConfig = RepositoryConfig()


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`<root>/<model>/model.toml`: the settings of one model. Missing keys fall back to the server's."""

    policy: PolicyName | None = None
    latency_objective_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    max_batch_size: Annotated[int, Meta(ge=1, le=1024)] | None = None
    batched: bool | None = None  # whether requests share runs; if unset, a test at load decides
    max_queue_delay_ms: Annotated[float, Meta(ge=0, le=10_000)] | None = None
    max_queue: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    buckets: BucketsSetting | None = None
    provider: Literal["auto", "cpu", "cuda"] | None = None
    instances: InstancesSetting | None = None
    versions: VersionsSetting | None = None
    # SHA-256 of every file that may be loaded, as hexadecimal digits: required for data beside a model file, and for
    # files with several hard links.
    sha256: Annotated[tuple[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")], ...], Meta(max_length=1024)] = ()


def load(
    file: Path | None = None, settings: Sequence[str] = (), overrides: Mapping[str, object] | None = None
) -> Config:
    """The configuration from a TOML file, overridden by `section.key=value` settings, overridden by `overrides`.

    Keys of `overrides` are dotted. Raises BadConfig, which names the key and what was expected.
    """
    values: dict[str, Any] = _read(file) if file is not None else {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise BadConfig(f"setting {setting!r} has no value, want section.key=value {_EXAMPLE}")
        _put(values, key.strip(), _value(text.strip()))
    for key, value in (overrides or {}).items():
        _put(values, key, value)
    return _convert(values, Config)


def load_model_config(data: bytes | str) -> ModelConfig:
    """The configuration in a `model.toml`. Raises BadConfig."""
    try:
        return _convert(tomllib.loads(decoded(data) if isinstance(data, bytes) else data), ModelConfig)
    except NoText as error:
        raise BadConfig(str(error)) from None
    except (ValueError, RecursionError, MemoryError) as error:  # tomllib raises more than its own error
        raise BadConfig(f"not TOML: {str(error)[:200] or 'too large'}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(decoded(file.read_bytes()))
    except OSError as error:
        raise BadConfig(f"configuration file {str(file)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadConfig(f"configuration file {str(file)!r} is not TOML: {error}") from None
    except NoText as error:
        raise BadConfig(f"configuration file {str(file)!r}: {error}") from None


def _value(text: str) -> object:
    # A setting's value is TOML where it parses (numbers, true, "text"), else plain text.
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _put(values: dict[str, Any], key: str, value: object) -> None:
    section, dot, name = key.partition(".")
    if not (dot and section and name):
        raise BadConfig(f"setting {key!r} names no section and key, want section.key=value {_EXAMPLE}")
    place = values.setdefault(section, {})
    if not isinstance(place, dict):
        raise BadConfig(f"configuration key {section!r} is not a section")
    place[name] = value


def _convert(values: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise BadConfig(f"configuration: {_describe(str(error), values, kind)}") from None


def _describe(message: str, values: dict[str, Any], kind: type[T]) -> str:
    # msgspec reports "Expected `int` <= 1024 - at `$.batching.max_batch_size`": the key is moved to the front.
    what, at, path = message.partition(" - at `$")
    where = path.strip("`.")
    if what.startswith("Object contains unknown field"):
        name = what.split("`")[1]
        return f"unknown key {f'{where}.{name}' if where else name!r}".replace("'", "")
    if what.startswith(f"{where}."):
        return what  # our own message, which concerns several keys
    if not at:
        return what
    if what.startswith("Invalid enum value"):
        expected = " or ".join(_choices(kind, where))
    elif not what.startswith("Expected"):
        return f"{where}: {what[0].lower()}{what[1:]}"
    else:
        expected = what.partition(", got ")[0].removeprefix("Expected ").replace("`", "")
        expected = expected.removesuffix(" | null").replace("array", "a list")
    return f"{where} is {_value_at(values, where)!r}, want {expected}"


def _choices(kind: type[T], where: str) -> list[str]:
    """The string values that a key accepts, and its other accepted types."""
    kinds: Any = msgspec.inspect.type_info(kind)
    for name in where.split("."):
        kinds = next(field.type for field in kinds.fields if field.name == name)
    types = getattr(kinds, "types", (kinds,))
    words = [repr(word) for each in types for word in getattr(each, "values", ())]
    others = {msgspec.inspect.IntType: "a number", msgspec.inspect.VarTupleType: "a list"}
    return words + [name for other, name in others.items() if any(isinstance(each, other) for each in types)]


def _value_at(values: dict[str, Any], where: str) -> object:
    value: Any = values
    for name in re.findall(r"[^.\[\]]+", where):
        value = value[int(name) if isinstance(value, list) else name]
    return value
