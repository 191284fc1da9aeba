"""`convoy health`: queries a server's health, as an orchestrator's probe does."""

from collections.abc import Sequence
from typing import Annotated

import grpc
import typer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from convoy.service.commands.options import Server
from convoy.service.supervisor import processes

# An answer is worthless once the prober has given up.
DEADLINE = 2.0
DEFAULT = "127.0.0.1:8001"
# Directly to the server: a proxy from the environment would answer for itself.
OPTIONS = (("grpc.enable_http_proxy", 0),)


def health(
    server: Server | None = None,
    service: Annotated[
        str, typer.Option(metavar="NAME", help="Service to check, such as a model's name; empty: the whole server.")
    ] = "",
) -> None:
    """Check a server: prints its status; exit code 0 if it is SERVING, else 1.

    Without --server it asks the one that runs on this machine or in this container, wherever that listens, and
    127.0.0.1:8001 where there is none or more than one.
    """
    status = check(server or _here(processes.announced()), service)
    typer.echo(status)
    raise typer.Exit(0 if status == "SERVING" else 1)


def _here(announced: Sequence[str]) -> str:
    return announced[0] if len(announced) == 1 else DEFAULT


def check(server: str, service: str = "") -> str:
    """The result of grpc.health.v1 Check: the name of a ServingStatus, or of the gRPC status code if the call failed.

    NOT_FOUND means that the server does not know the service; UNAVAILABLE or DEADLINE_EXCEEDED, that no server answers.
    """
    with grpc.insecure_channel(server, options=OPTIONS) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=DEADLINE)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(HealthCheckResponse.ServingStatus.Name(answer.status))
