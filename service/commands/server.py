"""`convoy serve`, `convoy models`, `convoy health`: a server as a whole.

Each imports what it needs when it runs: a probe calls `convoy health` every few seconds.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convoy.service.commands.options import (
    DEADLINE,
    CaFile,
    CertificateFile,
    ConfigFile,
    Deadline,
    FileArgument,
    Json,
    KeyFile,
    Models,
    Repository,
    Server,
    Settings,
    TokenFile,
    UseTls,
    credentials,
    target,
)
from convoy.service.config import DEFAULT_TARGET

if TYPE_CHECKING:
    from rich.console import Console

    from convoy.service.client.credentials import Credentials
    from convoy.service.client.results import Input, Model, Tensor

PROBE_DEADLINE = 2.0  # seconds: an answer is worthless once the prober has given up
_TASK = {"classification": "classify", "segmentation": "segment", "matching": "locate", "tensors": "tensors"}
_STATE_STYLE = {"ready": "green", "loading": "yellow", "unavailable": "red"}


def serve(
    path: FileArgument = None,
    repository: Repository = None,
    models: Models = None,
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Where to listen.  [default: 127.0.0.1]")] = None,
    grpc_port: Annotated[int | None, typer.Option(metavar="PORT", help="0: any free port.  [default: 8001]")] = None,
    http_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="For HTTP and the page.  [default: 8000]")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(metavar="PORT", help="For /metrics.  [default: 8002]")] = None,
    log_format: Annotated[
        Literal["auto", "json", "text"] | None,
        typer.Option("--log-format", help="auto: text on a terminal, JSON elsewhere.  [default: auto]"),
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Serve an ONNX file or a model repository over gRPC and HTTP, until SIGTERM or Ctrl-C.

    FILE is served as it is: its name is the model's, its version is 1, and a model.toml beside it is honoured.

    Environment variables such as CONVOY_SERVER__GRPC_PORT set what a file can, over it. 'convoy config' shows what is
    in force, and 'convoy check' tries the models without serving them.
    """
    from convoy.service import config, log
    from convoy.service.sources import source_of
    from convoy.service.supervisor import watch

    options: dict[str, object] = {
        "log_format": log_format,
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
    }
    overrides = {f"server.{name}": value for name, value in options.items() if value is not None}
    configuration = config.load(config_file, settings or (), overrides, os.environ)
    log.configure(configuration.server.log_level, "supervisor", configuration.server.log_format)
    raise typer.Exit(watch.serve(configuration, source_of(path, repository, models or ())))


def health(
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="HOST:PORT", parser=target, help="Address of the server.  [default: the local one]"
        ),
    ] = None,
    service: Annotated[
        str, typer.Option(metavar="NAME", help="Service to check, such as a model's name; empty: the whole server.")
    ] = "",
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
) -> None:
    """Check a server: prints its status; exit code 0 if it is SERVING, else 1.

    Without --server it checks the one that runs on this machine or in this container, wherever that listens, and
    127.0.0.1:8001 if there is none or more than one.
    """
    from convoy.service.supervisor import processes

    asked = server or local_target(processes.announced())
    status = check(asked, service, credentials(tls, ca, certificate, key, token_file))
    typer.echo(status)
    raise typer.Exit(0 if status == "SERVING" else 1)


def check(server: str, service: str = "", who: "Credentials | None" = None) -> str:
    """The result of grpc.health.v1 Check: the name of a ServingStatus, or of the gRPC status code if the call failed.

    NOT_FOUND means that the server does not know the service; UNAVAILABLE or DEADLINE_EXCEEDED, that no server answers.
    """
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    from convoy.service.client.credentials import PLAIN

    who = who or PLAIN
    with who.channel(server) as channel:
        try:
            request = HealthCheckRequest(service=service)
            answer = HealthStub(channel).Check(request, timeout=PROBE_DEADLINE, metadata=who.metadata())
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(HealthCheckResponse.ServingStatus.Name(answer.status))


def local_target(announced: Sequence[str]) -> str:
    """The only one of the servers that run here; the default address if there is none or more than one."""
    return announced[0] if len(announced) == 1 else DEFAULT_TARGET


def models(
    *,
    server: Server = DEFAULT_TARGET,
    tls: UseTls = False,
    ca: CaFile = "",
    certificate: CertificateFile = "",
    key: KeyFile = "",
    token_file: TokenFile = "",
    deadline: Deadline = DEADLINE,
    json: Json = False,
) -> None:
    """List the models of a server: versions, inputs, providers and metrics."""
    from convoy.service.client.client import Client
    from convoy.service.commands.terminal import console, print_json

    who = credentials(tls, ca, certificate, key, token_file)
    with Client(server, retry=False, balance=False, credentials=who) as client:
        served = client.models(deadline)
    if json:
        print_json(served)
    else:
        show_models(console(), served, tensor_inputs(served, server, who, deadline))


def tensor_inputs(
    served: "Sequence[Model]", server: str, who: "Credentials", deadline: float
) -> "dict[tuple[str, int], str]":
    """The inputs of the models that say nothing of themselves, by name and version; those that cannot be had are left
    out."""
    from convoy.service.client.results import ServerError
    from convoy.service.client.tensors import TensorClient

    unknown = [one for one in served if one.state == "ready" and not one.input.colour and one.tensor is None]
    found = {}
    with TensorClient(server, deadline, who) as client:
        for one in unknown:
            try:
                inputs = client.metadata(one.model, one.version).inputs
            except ServerError:
                continue
            found[one.model, one.version] = ", ".join(
                f"{each.name} [{', '.join('?' if side < 0 else str(side) for side in each.shape)}] {each.datatype}"
                for each in inputs
            )
    return found


def show_models(
    out: "Console", served: "Sequence[Model]", inputs: "Mapping[tuple[str, int], str] | None" = None
) -> None:
    """Print the table, or on a terminal too narrow for it a paragraph for each version, and below it why versions are
    not ready. `inputs` are those of models that say nothing of themselves."""
    from rich.measure import Measurement
    from rich.text import Text

    from convoy.service.commands.terminal import numbers_table, plain

    if not served:
        out.print("The server's model repository contains no model.")
        return
    table = numbers_table("model", "version")
    for name in ("state", "task", "provider", "input"):
        table.add_column(name, no_wrap=True)
    table.add_column("labels", justify="right")
    table.add_column("metrics")
    rows = [(one, _cells(one, inputs or {})) for one in served]
    for one, cells in rows:
        table.add_row(
            Text(plain(one.model), "bold", no_wrap=True),
            str(one.version or ""),
            Text(one.state, _STATE_STYLE.get(one.state, "")),
            *cells,
        )
    widest = Measurement.get(out, out.options.update(max_width=1000), table).maximum
    if widest > out.width and out.is_terminal:
        for one, (task, provider, size, labels, metrics) in rows:
            title = Text.assemble((plain(one.model), "bold"), f" {one.version or ''}  ")
            out.print(title.append(one.state, _STATE_STYLE.get(one.state, "")), soft_wrap=True)
            facts = [task, provider, size, f"{labels} labels" if labels else "", metrics]
            out.print(Text(f"  {' · '.join(filter(None, facts))}"))
    else:
        # At full width where it is no terminal: a truncated model name cannot be used.
        out.width = max(out.width, widest)
        out.print(table)
    for one in served:
        if one.reason:
            out.print(
                Text(f"{plain(one.model)} {one.version or ''}".rstrip() + f": {plain(one.reason)}"), soft_wrap=True
            )


def _cells(one: "Model", inputs: "Mapping[tuple[str, int], str]") -> tuple[str, str, str, str, str]:
    """Task, provider, input, labels and metrics."""
    from convoy.service.commands.terminal import plain

    size = _tensor_size(one.tensor) if one.tensor else _input_size(one.input)
    return (
        "infer" if one.tensor else _TASK.get(one.task, ""),
        " ".join(filter(None, (plain(one.provider).removesuffix("ExecutionProvider"), plain(one.precision)))),
        size or plain(inputs.get((one.model, one.version), "")),
        str(len(one.labels)) if one.labels else "",
        ", ".join(f"{plain(name)} {value:.3g}" for name, value in sorted(one.metrics.items())),
    )


def _input_size(accepted: "Input") -> str:
    # 32×32 L, any size RGB; empty if unknown.
    if not accepted.colour:
        return ""
    size = f"{accepted.width}×{accepted.height}" if accepted.height and accepted.width else "any size"
    return f"{size} {accepted.colour}"


def _tensor_size(accepted: "Tensor") -> str:
    # [3, time] FP32
    from convoy.service.commands.terminal import plain

    sides = ", ".join(str(axis.size or plain(axis.name)) for axis in accepted.axes)
    return f"[{sides}] {plain(accepted.datatype)}"
