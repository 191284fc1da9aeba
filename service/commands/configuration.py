"""`convoy config`: the configuration in force, and where each value is from."""

import json as codec
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoy.service.commands.options import ConfigFile, Settings

if TYPE_CHECKING:
    from convoy.service.config import Config, Reading

_DEFAULT = "default"
_HEAD = """\
# The configuration in force, and where each value is from. What follows "here" is what a value means on this machine.
# It contains no secrets: keys, certificates and tokens are in files of their own, whose paths it shows.
"""


def config(
    config_file: ConfigFile = None,
    settings: Settings = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of TOML.")] = False,
) -> None:
    """Print the configuration that a server would have now, as a file for --config.

    Each line says where its value is from: the default, the file, an environment variable such as
    CONVOY_SERVER__GRPC_PORT, or --set, each over those before it. It contains no secrets, only the paths of files that
    do.
    """
    from convoy.service import config
    from convoy.service.commands.terminal import print_json

    reading = config.read(config_file, settings or (), environment=os.environ)
    here = on_this_machine(reading.config)
    if json:
        print_json(as_json(reading, here))
    else:
        typer.echo(_HEAD + "\n".join(as_toml(reading, here)))


def on_this_machine(config: "Config") -> dict[str, object]:
    """What values that stand for others come to on this machine, by dotted key."""
    from convoy.service import machine
    from convoy.service.supervisor import store

    cores, memory = machine.cores(), machine.memory_bytes()
    front_ends = config.server.front_ends(cores)
    devices = config.engine.device_numbers(machine.cuda_devices)
    found: dict[str, object] = {}
    if config.server.frontends == "auto":
        found["server.frontends"] = front_ends
    if config.server.frontend_memory_mib == "auto":
        found["server.frontend_memory_mib"] = config.server.memory_bytes("frontend", front_ends, memory) >> 20
    if config.server.engine_memory_mib == "auto":
        found["server.engine_memory_mib"] = config.server.memory_bytes("engine", len(devices), memory) >> 20
    if config.server.transport == "auto":
        found["server.transport"] = "nghttp2" if machine.has_library(machine.HTTP2_LIBRARY) else "grpcio"
    if not config.limits.inflight_bytes:
        found["limits.inflight_bytes"] = config.limits.bytes_in_flight(memory, front_ends)
    if not config.limits.decode_threads:
        found["limits.decode_threads"] = config.limits.threads(cores)
    if config.engine.devices == "auto":
        found["engine.devices"] = list(devices)
    if not config.engine.threads:
        found["engine.threads"] = cores
    if not config.repository.trial_memory_mib:
        found["repository.trial_memory_mib"] = memory >> 20
    if not config.repository.cache and (folder := store.usual_folder()) is not None:
        found["repository.cache"] = str(folder)
    return found


def as_toml(reading: "Reading", here: Mapping[str, object]) -> Iterator[str]:
    """The lines of a configuration file that gives the same configuration."""
    from convoy.service.commands.terminal import plain

    for section, values in _sections(reading.config):
        yield ""
        yield f"[{section}]"
        for name, value in values.items():
            key = f"{section}.{name}"
            origin = plain(reading.origins.get(key, _DEFAULT))
            means = f"; here {_toml(here[key])}" if key in here else ""
            if value is None:
                yield f"# {name} is not set  # {origin}"
            else:
                yield f"{name} = {_toml(value)}  # {origin}{means}"


def as_json(reading: "Reading", here: Mapping[str, object]) -> dict[str, Any]:
    """By section and key: the value, where it is from, and what it means here if it stands for another."""
    return {
        section: {
            name: {
                "value": value,
                "from": reading.origins.get(f"{section}.{name}", _DEFAULT),
                **({"here": here[f"{section}.{name}"]} if f"{section}.{name}" in here else {}),
            }
            for name, value in values.items()
        }
        for section, values in _sections(reading.config)
    }


def _sections(config: "Config") -> Iterator[tuple[str, dict[str, Any]]]:
    import msgspec

    for section in msgspec.structs.fields(config):
        yield section.name, msgspec.structs.asdict(getattr(config, section.name))


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's strings are TOML's but for one character.
        return codec.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
