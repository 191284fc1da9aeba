"""`convoy serve`: serves a model repository."""

from pathlib import Path
from typing import Annotated

import typer

from convoy.service import config, log
from convoy.service.supervisor import watch


def serve(
    repository: Annotated[
        Path, typer.Option(metavar="DIR", help="The model repository: <model>/<version>/model.onnx below it.")
    ],
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Where to listen.  [default: 127.0.0.1]")] = None,
    grpc_port: Annotated[int | None, typer.Option(metavar="PORT", help="0 takes a free one.  [default: 8001]")] = None,
    http_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="For /livez and /readyz.  [default: 8000]")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(metavar="PORT", help="For /metrics.  [default: 8002]")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="A TOML file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting, over the file's.")
    ] = None,
) -> None:
    """Serve a model repository over gRPC, until SIGTERM or Ctrl-C."""
    options = {"host": host, "grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port}
    overrides = {f"server.{name}": value for name, value in options.items() if value is not None}
    settled = config.load(config_file, settings or (), overrides)
    log.configure(settled.server.log_level, "supervisor")
    raise typer.Exit(watch.serve(settled, repository))
