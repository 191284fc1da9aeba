"""The server's configuration: one frozen struct per section, filled once at start, from a file and more."""

import itertools
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from convoy.service.environment import variable, variables
from convoy.service.errors import BadConfig
from convoy.service.metadata import Side
from convoy.service.text import NoText, decoded

Port = Annotated[int, Meta(ge=0, le=65_535)]
LogLevel = Literal["debug", "info", "warning", "error"]
DEFAULT_TARGET = "127.0.0.1:8001"  # for clients: where a server with the default settings listens
MIB = 1 << 20
KIB = 1 << 10
_MOST_AUTO = 8  # front ends: enough to saturate one engine
_EXAMPLE = "such as batching.max_batch_size=16"
T = TypeVar("T")


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Listening addresses and shutdown times."""

    host: str = "127.0.0.1"  # address to listen on; "0.0.0.0" in the image
    grpc_port: Port = 8001  # gRPC; 0, as of each port: any free one
    http_port: Port = 8000  # HTTP, with `/livez` and `/readyz`
    metrics_port: Port = 8002  # `/metrics`
    # Whether http_port answers the HTTP API and the page besides /livez and /readyz.
    http_api: bool = True
    # Origins of other sites whose pages may ask over HTTP, such as https://example.org; "*": every site.
    cors_origins: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=64)] = ()
    # Processes that serve gRPC, all on one port; "auto": one for every four cores.
    frontends: Annotated[int, Meta(ge=1, le=64)] | Literal["auto"] = 1
    # Whether the gRPC port opens only once models are loaded: for proxies that check nothing, and call whoever accepts
    # connections. Otherwise calls are refused as UNAVAILABLE until then.
    listen_when_loaded: bool = False
    lame_duck_seconds: Annotated[float, Meta(ge=0, le=300)] = 1.0  # still accepts requests after SIGTERM
    grace_seconds: Annotated[float, Meta(ge=0, le=3600)] = 20.0  # for accepted requests to be answered
    # How long the series of a version remain after it stops serving, so that a few scrapes still find its final values.
    keep_metrics_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 600.0
    # The shortest time between two keepalive pings of a client; a client that pings faster is disconnected after a few.
    min_ping_seconds: Annotated[float, Meta(ge=0, le=3600)] = 1.0
    # A connection older than this, give or take a tenth, accepts no more calls, so that clients and proxies look for
    # further replicas and connect again; its calls may take the grace to end. 0: no limit.
    max_connection_age_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    max_connection_grace_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    max_connection_idle_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0  # without a call; 0: no limit
    max_connection_calls: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # concurrent; 0: as many as a front end accepts
    # A process whose loop is silent for so long is killed and replaced; 0: never. Not while a debugger holds it.
    heartbeat_seconds: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    # Memory of its own that a process may have, in MiB. One that has had more for five seconds, and half as much again
    # as when it began to serve, is replaced. "auto": half of the memory for all processes of a kind; 0: no limit.
    frontend_memory_mib: Annotated[int, Meta(ge=0, le=1 << 24)] | Literal["auto"] = "auto"
    engine_memory_mib: Annotated[int, Meta(ge=0, le=1 << 24)] | Literal["auto"] = "auto"
    # What speaks gRPC; "auto": libnghttp2 where it is installed, else grpcio, which takes several times the CPU time.
    transport: Literal["auto", "nghttp2", "grpcio"] = "auto"
    # Of answers, for clients that accept it. It costs CPU time, and pays where the network is slower than the server.
    compression: Literal["none", "gzip", "deflate"] = "none"
    log_level: LogLevel = "info"  # debug: a line for every refused request, too
    log_format: Literal["auto", "json", "text"] = "auto"  # auto: text on a terminal, JSON elsewhere
    # A line of the log for each request that is refused or fails, or for each.
    log_requests: Literal["none", "failed", "all"] = "none"
    # The most of these lines of one front end; a further line counts the others. 0: no limit.
    log_requests_per_second: Annotated[int, Meta(ge=0, le=1_000_000)] = 100

    def front_ends(self, cores: int) -> int:
        """The number of front ends on a machine with `cores` cores.

        A front end's event loop uses at most one core; its decoding threads and the engine use the others. So `auto` is
        one for every four cores, and at least one: on two cores a second front end would only take CPU time from them.
        """
        return max(1, min(cores // 4, _MOST_AUTO)) if self.frontends == "auto" else self.frontends

    def memory_bytes(self, kind: Literal["frontend", "engine"], processes: int, memory: int) -> int:
        """What each of the `processes` of a kind may have, on a machine with `memory` bytes; 0: no limit."""
        mib = self.frontend_memory_mib if kind == "frontend" else self.engine_memory_mib
        return memory // (2 * processes) if mib == "auto" else mib * MIB

    def __post_init__(self) -> None:
        ports = {"grpc_port": self.grpc_port, "http_port": self.http_port, "metrics_port": self.metrics_port}
        for (one, port), (other, same) in itertools.combinations(ports.items(), 2):
            if port and port == same:
                raise ValueError(f"server.{one} and server.{other} are both {port}, want different ports")


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one request and of one front end."""

    max_message_bytes: Annotated[int, Meta(ge=1024, le=2**31 - 1)] = 64 * MIB  # size of one request
    # All headers of one call together. As much as gRPC's own servers accept: a token of single sign-on, and what a mesh
    # adds. Some tokens alone are longer.
    max_metadata_bytes: Annotated[int, Meta(ge=1024, le=16 * MIB)] = 16 * KIB
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
    # Of one front end; 0: one per core, at least two. With one, small pictures wait for the largest.
    decode_threads: Annotated[int, Meta(ge=0, le=256)] = 0

    def bytes_in_flight(self, memory: int, front_ends: int) -> int:
        """`inflight_bytes`, with 0 resolved for a machine with `memory` bytes. The largest message always fits."""
        share = memory // (4 * front_ends)
        return self.inflight_bytes or max(self.max_message_bytes, min(self.slot_bytes, share))

    def threads(self, cores: int) -> int:
        """`decode_threads`, with 0 resolved for a machine with `cores` cores."""
        return self.decode_threads or max(2, cores)

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

    policy: PolicyName = "deferred"  # how batches are formed; the others are there for comparison
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
    versions: VersionsSetting = "latest 1"  # which versions of a model serve: the N highest, all, or those listed
    # A new or changed version first loads and runs in a process of its own, for at most this long; 0: it does not.
    trial_seconds: Annotated[float, Meta(ge=0, le=3600)] = 120.0
    trial_memory_mib: Annotated[int, Meta(ge=0, le=1 << 24)] = 0  # of that process; 0: the memory of the machine
    # Folder for copies of the files that serve and for results of trials; "": `convoy` in the user's cache folder.
    cache: str = ""


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encryption of all three ports: PEM files, which are read again when they change. Not set: none."""

    certificate: str = ""  # the server's, followed by those between it and its root
    key: str = ""  # the private key of that certificate, without a password
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


class AdminConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The administration port. It has no host: it is on 127.0.0.1 or a Unix socket, and nowhere else."""

    enabled: bool = False  # opens the port
    port: Port = 8003  # on 127.0.0.1
    socket: str = ""  # path of a Unix socket that only this user may use; it takes the place of the port
    # Clients may register regions of shared memory there; requests on either port may then refer to them.
    shared_memory: bool = False

    def __post_init__(self) -> None:
        if self.shared_memory and not self.enabled:
            raise ValueError("admin.shared_memory is set, but admin.enabled is not: regions are registered on its port")


class TracingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Spans for a collector of OpenTelemetry, whose own variables (OTEL_...) may set what is not set here."""

    enabled: bool = False  # records spans; wants `convoy[tracing]`
    # URL of a collector that speaks OTLP over gRPC, such as http://127.0.0.1:4317; "": OTEL_EXPORTER_OTLP_ENDPOINT.
    endpoint: Annotated[str, Meta(max_length=2048)] = ""
    # Of the traces that begin here: of requests without `traceparent`. A request with it is sampled as it says.
    share: Annotated[float, Meta(ge=0, le=1)] = 0.01
    # The most requests a second of one front end that are recorded, whatever callers ask for; 0: no limit.
    requests_per_second: Annotated[int, Meta(ge=0, le=1_000_000)] = 100
    service_name: Annotated[str, Meta(max_length=256)] = ""  # "": OTEL_SERVICE_NAME, else convoy

    def __post_init__(self) -> None:
        if self.endpoint and not self.enabled:
            raise ValueError("tracing.endpoint is set, but tracing.enabled is not")
        if self.endpoint and not re.fullmatch(r"https?://[^\s/@]+/?", self.endpoint):
            raise ValueError(f"tracing.endpoint is {self.endpoint!r}, want http://HOST:PORT or https://HOST:PORT")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of a server."""

    server: ServerConfig = ServerConfig()
    tls: TlsConfig = TlsConfig()
    access: AccessConfig = AccessConfig()
    quotas: QuotasConfig = QuotasConfig()
    admin: AdminConfig = AdminConfig()
    tracing: TracingConfig = TracingConfig()
    limits: LimitsConfig = LimitsConfig()
    batching: BatchingConfig = BatchingConfig()
    engine: EngineConfig = EngineConfig()
    repository: RepositoryConfig = RepositoryConfig()

    def __post_init__(self) -> None:
        if self.admin.enabled and self.admin.port and not self.admin.socket:
            for name in ("grpc_port", "http_port", "metrics_port"):
                if getattr(self.server, name) == self.admin.port:
                    raise ValueError(f"admin.port and server.{name} are both {self.admin.port}, want different ports")


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


class Reading(NamedTuple):
    """A configuration, and where each of its values is from, by dotted key; a key that is not there has its default."""

    config: Config
    origins: Mapping[str, str]


def load(
    file: Path | None = None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The configuration from a TOML file, overridden by the variables of an environment, overridden by
    `section.key=value` settings, overridden by `overrides`.

    Keys of `overrides` are dotted. Raises BadConfig, which names the key and what was expected.
    """
    return read(file, settings, overrides, environment).config


def read(
    file: Path | None = None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Reading:
    """As `load`, and where each value is from: the file, the name of a variable, `--set`, or an option."""
    values: dict[str, Any] = _read(file) if file is not None else {}
    origins = {f"{section}.{key}": str(file) for section, each in values.items() for key in _keys_in(each)}
    for key, text in variables(environment or {}, keys()).items():
        _put(values, key, _value(text))
        origins[key] = variable(key)
    for setting in settings:
        if not _is_text(setting):
            raise BadConfig(f"setting {setting!r} is not UTF-8, want section.key=value {_EXAMPLE}")
        key, equals, text = setting.partition("=")
        if not equals:
            raise BadConfig(f"setting {setting!r} has no value, want section.key=value {_EXAMPLE}")
        _put(values, key.strip(), _value(text.strip()))
        origins[key.strip()] = "--set"
    for key, value in (overrides or {}).items():
        _put(values, key, value)
        origins[key] = f"--{key.partition('.')[2].replace('_', '-')}"
    try:
        return Reading(_convert(values, Config), origins)
    except BadConfig as error:
        raise BadConfig(error.message + _set_by(error.message, origins)) from None


def keys() -> list[str]:
    """All dotted keys of the configuration, in order."""
    sections = msgspec.structs.fields(Config)
    return [f"{section.name}.{key.name}" for section in sections for key in msgspec.structs.fields(section.type)]


def _set_by(message: str, origins: Mapping[str, str]) -> str:
    """Which variables set the keys that a message names: nobody sees them where the server is started."""
    named = [origin for key, origin in origins.items() if re.search(rf"\b{re.escape(key)}\b", message)]
    set_by = [origin for origin in named if origin.startswith(variable(""))]
    return f"; set by {' and '.join(set_by)}" if set_by else ""


def _keys_in(section: object) -> list[str]:
    return list(section) if isinstance(section, dict) else []


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


def _is_text(argument: str) -> bool:
    # Bytes of a command line that are not UTF-8 arrive as surrogates.
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    for part in where.split("."):
        name, *places = part.split("[")
        kinds = next(field.type for field in kinds.fields if field.name == name)
        for _ in places:
            kinds = next(each.item_type for each in getattr(kinds, "types", (kinds,)) if hasattr(each, "item_type"))
    types = getattr(kinds, "types", (kinds,))
    words = [repr(word) for each in types for word in getattr(each, "values", ())]
    others = {msgspec.inspect.IntType: "a number", msgspec.inspect.VarTupleType: "a list"}
    return words + [name for other, name in others.items() if any(isinstance(each, other) for each in types)]


def _value_at(values: dict[str, Any], where: str) -> object:
    value: Any = values
    for name in re.findall(r"[^.\[\]]+", where):
        value = value[int(name) if isinstance(value, list) else name]
    return value
