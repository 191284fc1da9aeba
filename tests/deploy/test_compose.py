"""deploy/compose.yaml says nothing that is not there: flags, ports, paths, variables, commands.

There is no container engine here. The rules of compose files are those of its specification, as far as this file uses
them; programs are asked for their flags, and run on the mounted files by the tests beside this one.
"""

import re
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from convoy.service import cli, config
from tests.deploy.fleet import DEPLOY, program

ROOT = DEPLOY.parent
FILE = DEPLOY / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MOUNTED = {
    "envoy/envoy.yaml",
    "prometheus/prometheus.yml",
    "prometheus/rules",
    "prometheus/alertmanager.yml",
    "grafana/provisioning",
    "grafana/dashboards",
}

_VOLUME = r"^[^:]+(:-[^:]+)?:/[^:]*(:ro)?$"
_DURATION = {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?$"}
_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_CONDITION = {
    "type": "object",
    "properties": {"condition": {"enum": ["service_started", "service_healthy", "service_completed_successfully"]}},
    "required": ["condition"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "required": ["services"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
        "services": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["image", "healthcheck"],
                "additionalProperties": False,
                "properties": {
                    "image": {"type": "string", "pattern": r"^[a-z0-9/-]+:[\w.-]+$"},
                    "pull_policy": {"enum": ["always", "never", "missing", "build"]},
                    "command": _STRINGS,
                    "environment": {
                        "type": "object",
                        "propertyNames": {"pattern": "^[A-Z0-9_]+$"},
                        "additionalProperties": {"type": "string"},
                    },
                    "volumes": {
                        "type": "array",
                        "items": {"type": "string", "pattern": r"^[^:]+(:-[^:]+)?:/[^:]*(:ro)?$"},
                    },
                    "expose": {"type": "array", "items": {"type": "string", "pattern": r"^\d+$"}},
                    "ports": {"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
                    "read_only": {"type": "boolean"},
                    "cap_drop": {"type": "array", "items": {"enum": ["ALL"]}},
                    "security_opt": {"type": "array", "items": {"enum": ["no-new-privileges:true"]}},
                    "shm_size": {"type": "string", "pattern": r"^\d+(b|kb|mb|gb)$"},
                    "stop_grace_period": _DURATION,
                    "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
                    "depends_on": {"type": "object", "additionalProperties": _CONDITION},
                    "deploy": {
                        "type": "object",
                        "properties": {"replicas": {"type": "integer", "minimum": 2}},
                        "additionalProperties": False,
                    },
                    "healthcheck": {
                        "type": "object",
                        "required": ["test", "interval", "timeout", "retries"],
                        "additionalProperties": False,
                        "properties": {
                            "test": {**_STRINGS, "prefixItems": [{"const": "CMD"}]},
                            "interval": _DURATION,
                            "timeout": _DURATION,
                            "start_period": _DURATION,
                            "retries": {"type": "integer", "minimum": 1},
                        },
                    },
                },
            },
        },
    },
}


def problems(compose: dict[str, Any]) -> list[str]:
    """What the rules of compose files have against it."""
    found = [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(compose)]
    services = compose.get("services", {})
    for name, service in services.items():
        found += [f"{name} depends on {other}" for other in service.get("depends_on", {}) if other not in services]
        sources = [volume.partition(":")[0] for volume in service.get("volumes", [])]
        named = [source for source in sources if re.fullmatch(r"\w+", source)]
        found += [f"{name} names the volume {source}" for source in named if source not in compose.get("volumes", {})]
    taken = [port.split(":")[1] for service in services.values() for port in service.get("ports", [])]
    found += [f"port {port} is published twice" for port in set(taken) if taken.count(port) > 1]
    return found


def test_file_keeps_the_rules_of_compose_files() -> None:
    assert problems(COMPOSE) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("healthcheck:", "healthchek:", "healthchek"),
        ("condition: service_healthy", "condition: healthy", "healthy"),
        ("stop_grace_period: 30s", "stop_grace_period: 30", "30 is not of type 'string'"),
        ("9090:9090", "8000:9090", "port 8000 is published twice"),
        ("- prometheus:/prometheus", "- metrics:/prometheus", "the volume metrics"),
        ("      prometheus: {cond", "      prometheuz: {cond", "depends on prometheuz"),
    ],
)
def test_broken_file_is_found(old: str, new: str, said: str) -> None:
    text = FILE.read_text()
    assert old in text
    assert said in "; ".join(problems(yaml.safe_load(text.replace(old, new))))


def mounts() -> list[tuple[str, str, str]]:
    """Service, path beside the file, and path in the container of what is mounted from this repository."""
    found = []
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                source, target = volume.removesuffix(":ro").split(":")
                assert volume.endswith(":ro")
                found.append((name, source.removeprefix("./"), target))
    return found


def test_everything_mounted_is_in_the_repository() -> None:
    for _, source, _ in mounts():
        assert (DEPLOY / source).exists(), source
    assert {source for _, source, _ in mounts()} == MOUNTED


def test_every_file_that_a_command_names_is_mounted_there() -> None:
    for name, service in SERVICES.items():
        targets = [target for owner, _, target in mounts() if owner == name]
        targets += [volume.split(":")[1] for volume in service.get("volumes", []) if volume[0] not in ".$"]
        for word in service.get("command", []):
            path = word.rpartition("=")[2]
            if path.startswith("/"):
                assert any(path == target or path.startswith(f"{target}/") for target in targets), path


def test_servers_are_set_by_variables_that_exist_and_may_drain() -> None:
    convoy = SERVICES["convoy"]
    loaded = config.load(None, (), {}, convoy["environment"])
    server = loaded.server
    assert server.lame_duck_seconds == 4
    grace = int(convoy["stop_grace_period"].removesuffix("s"))
    assert grace >= server.lame_duck_seconds + server.grace_seconds + 3
    with pytest.raises(Exception, match=r"LAME_DUK|lame_duk"):
        config.load(None, (), {}, {"CONVOY_SERVER__LAME_DUK_SECONDS": "2"})


def test_ports_are_those_that_servers_and_proxies_listen_on() -> None:
    exposed = re.search(r"^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert SERVICES["convoy"]["expose"] == exposed[1].split()
    server = config.ServerConfig()
    assert {str(port) for port in (server.http_port, server.grpc_port, server.metrics_port)} == set(exposed[1].split())
    envoy = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    listening = [each["address"]["socket_address"] for each in envoy["static_resources"]["listeners"]]
    listening.append(envoy["admin"]["address"]["socket_address"])
    assert {each["address"] for each in listening} == {"0.0.0.0"}
    published = {port.rpartition(":")[2] for port in SERVICES["envoy"]["ports"]}
    assert published == {str(each["port_value"]) for each in listening}
    for service in SERVICES.values():
        asked = re.findall(r"127\.0\.0\.1[:/](\d+)", " ".join(service["healthcheck"]["test"]))
        assert all(port in {one.rpartition(":")[2] for one in service["ports"]} for port in asked)


def test_envoy_asks_the_servers_by_their_name_here() -> None:
    envoy = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    asked = set()
    for cluster in envoy["static_resources"]["clusters"]:
        for group in cluster["load_assignment"]["endpoints"]:
            addresses = [each["endpoint"]["address"]["socket_address"] for each in group["lb_endpoints"]]
            asked |= {(each["address"], str(each["port_value"])) for each in addresses}
    assert asked == {("convoy", "8001"), ("convoy", "8000")}
    assert "convoy" in SERVICES


def test_health_check_of_the_servers_is_a_command_of_ours() -> None:
    words = SERVICES["convoy"]["healthcheck"]["test"][1:]
    assert words[0] == "convoy"
    assert words[1] in cli.COMMANDS
    image = re.search(r"HEALTHCHECK .* CMD \[(.*)\]", (ROOT / "Dockerfile").read_text())
    assert image is not None
    assert [word.strip(' "') for word in image[1].split(",")] == words


@pytest.mark.parametrize("name", ["envoy", "prometheus", "alertmanager"])
def test_flags_are_known_to_the_programs_and_versions_are_theirs(name: str) -> None:
    words = SERVICES[name]["command"]
    path = program({"alertmanager": "prometheus-alertmanager"}.get(name, name))
    told = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=60, check=False)
    known = set(re.findall(r"--[\w.-]+", told.stdout + told.stderr))
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert flags
    assert not [flag for flag in flags if flag not in known and flag != "--config-path"]
    if name == "envoy":  # which prints the short name of this one alone
        for flag, known_flag in (("--config-path", True), ("--config-pat", False)):
            validate = [path, "--mode", "validate", flag, str(DEPLOY / "envoy/envoy.yaml")]
            done = subprocess.run(validate, capture_output=True, timeout=60, check=False)
            assert (done.returncode == 0) is known_flag
    # The version that the tests run is that of the image.
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    version = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
    assert version is not None
    wanted = SERVICES[name]["image"].rpartition(":v")[2]
    assert version[0].split(".")[:2] == wanted.split(".")[:2]
