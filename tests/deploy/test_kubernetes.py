"""What kustomize renders is what Kubernetes, KEDA, the Prometheus operator and KServe accept, and names what exists."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from convoy.service import config, errors, metrics
from convoy.service.supervisor import watch
from tests.deploy import manifests, schemas
from tests.deploy.manifests import (
    COMBINATIONS,
    FOLDER,
    OVERLAYS,
    ROOT,
    SERVED,
    Document,
    Workload,
    deployment,
    of_kind,
    rendered,
    variables,
    walk,
    workloads,
)
from tests.test_documents import unknown

PAGE = ROOT / "docs" / "kubernetes.md"
FILES = sorted(FOLDER.rglob("*.yaml"))
FIRST_PROFILE = 600  # seconds that a start may take

Change = Callable[[Document], None]


def documents() -> list[tuple[str, Document]]:
    return [(name, each) for name in COMBINATIONS for each in rendered(name)]


# ---- schemas


@pytest.mark.parametrize("version", schemas.KUBERNETES)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_everything_rendered_fits_its_strict_schema(name: str, version: str) -> None:
    found = {
        f"{each['kind']} {each['metadata']['name']}": fault
        for each in rendered(name)
        if (fault := schemas.faults(each, version))
    }
    assert found == {}


@pytest.mark.parametrize("version", schemas.KUBERNETES)
def test_claim_of_the_model_repository_fits_its_schema(version: str) -> None:
    claim = yaml.safe_load((FOLDER / "repository-claim.yaml").read_text())
    assert schemas.faults(claim, version) == []
    assert wrong_units(claim) == []
    mounted = next(each for each in deployment("cpu").pod["volumes"] if each["name"] == "repository")
    assert mounted["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def _container(document: Document) -> Document:
    return document["spec"]["template"]["spec"]["containers"][0]  # type: ignore[no-any-return]


# (what is rendered, kind, what is made wrong in it, what the fault names)
WRONG: dict[str, tuple[str, str, Change, str]] = {
    "misspelt probe": (
        "cpu",
        "Deployment",
        lambda each: _container(each).update(readynessProbe=_container(each).pop("readinessProbe")),
        "readynessProbe",
    ),
    "seconds with a unit": (
        "cpu",
        "Deployment",
        lambda each: each["spec"]["template"]["spec"].update(terminationGracePeriodSeconds="45s"),
        "45s",
    ),
    "port without a number": ("cpu", "Service", lambda each: each["spec"]["ports"][0].pop("port"), "port"),
    "unknown kind of a policy": (
        "cpu",
        "PodDisruptionBudget",
        lambda each: each["spec"].update(unhealthyPodEviction="AlwaysAllow"),
        "unhealthyPodEviction",
    ),
    "misspelt protocol of KServe": (
        "kserve",
        "ServingRuntime",
        lambda each: each["spec"].update(protocolVersion=each["spec"].pop("protocolVersions")),
        "protocolVersion",
    ),
    "misspelt container of KServe": (
        "kserve",
        "ServingRuntime",
        lambda each: each["spec"]["containers"][0].update(readynessProbe={}),
        "readynessProbe",
    ),
    "runtime without containers": (
        "kserve",
        "ServingRuntime",
        lambda each: each["spec"].pop("containers"),
        "containers",
    ),
    "priority that is no number": (
        "kserve",
        "ServingRuntime",
        lambda each: each["spec"]["supportedModelFormats"][0].update(priority="1"),
        "'1'",
    ),
    "misspelt storage": (
        "kserve",
        "InferenceService",
        lambda each: each["spec"]["predictor"]["model"].update(storageURI="s3://bucket"),
        "storageURI",
    ),
    "misspelt limit of KEDA": (
        "cpu with components",
        "ScaledObject",
        lambda each: each["spec"].update(minReplicas=2),
        "minReplicas",
    ),
    "threshold that is no text": (
        "cpu with components",
        "ScaledObject",
        lambda each: each["spec"]["triggers"][0]["metadata"].update(threshold=0.05),
        "0.05",
    ),
    "unknown fallback": (
        "cpu with components",
        "ScaledObject",
        lambda each: each["spec"]["fallback"].update(behavior="none"),
        "'none'",
    ),
    "scale target without a name": (
        "cpu with components",
        "ScaledObject",
        lambda each: each["spec"]["scaleTargetRef"].pop("name"),
        "name",
    ),
    "unknown scheme of a scrape": (
        "cpu with components",
        "ServiceMonitor",
        lambda each: each["spec"]["endpoints"][0].update(scheme="ftp"),
        "ftp",
    ),
    "misspelt interval of a scrape": (
        "cpu with components",
        "ServiceMonitor",
        lambda each: each["spec"]["endpoints"][0].update(intervall="15s"),
        "intervall",
    ),
}


@pytest.mark.parametrize("version", schemas.KUBERNETES)
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_does_not_fit(what: str, version: str) -> None:
    name, kind, change, named = WRONG[what]
    document = copy.deepcopy(next(each for each in rendered(name) if each["kind"] == kind))
    assert schemas.faults(document, version) == []
    change(document)
    assert named in " ".join(schemas.faults(document, version))


# Schemas of Kubernetes do not look into texts: a quantity is any text for them.
_QUANTITIES = {
    "cpu": r"\d+m?|\d+\.\d+",
    "nvidia.com/gpu": r"\d+",
    **dict.fromkeys(("memory", "ephemeral-storage", "storage", "sizeLimit"), r"\d+(Ki|Mi|Gi|Ti)"),
    # Those of Prometheus.
    **dict.fromkeys(("interval", "scrapeTimeout"), r"\d+(ms|s|m|h)"),
}


def wrong_units(document: Document) -> list[str]:
    """Quantities and durations with a unit that they do not have, or that means something else: 512m of memory are half
    a byte."""
    return [
        f"{'.'.join(map(str, path))} is {value!r}"
        for path, value in walk(document)
        if path and path[-1] in _QUANTITIES and not isinstance(value, dict | list)
        if not re.fullmatch(_QUANTITIES[str(path[-1])], str(value))
    ]


def test_quantities_and_durations_have_the_units_that_are_meant() -> None:
    assert {name: found for name, each in documents() if (found := wrong_units(each))} == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("memory", "512m"), ("memory", "2Gb"), ("cpu", "2cores"), ("sizeLimit", "64M"), ("interval", "15")],
)
def test_wrong_unit_would_be_seen(key: str, value: str) -> None:
    assert wrong_units({"spec": {"resources": {"limits": {key: value}}}}) == [
        f"spec.resources.limits.{key} is {value!r}"
    ]


# ---- names of ours


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_argument_is_an_option_of_the_command(name: str) -> None:
    for workload in workloads(rendered(name)):
        arguments = workload.container["args"]
        assert arguments[0] == "serve"
        assert unknown(arguments) == []


def test_unknown_argument_would_be_seen() -> None:
    assert unknown(["serve", "--repositories=/repository"]) == ["--repositories"]


def configuration(name: str, workload: Workload, folder: Path) -> config.Config:
    """What the server reads at its start. Raises BadConfig."""
    file = None
    if any(each.startswith("--config") for each in workload.container["args"]):
        file = manifests.settings_file(name, folder)
    return config.load(file, environment=variables(workload))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_file_and_variables_are_settings_of_the_server(name: str, tmp_path: Path) -> None:
    for workload in workloads(rendered(name)):
        found = configuration(name, workload, tmp_path)
        assert found.server.host == "0.0.0.0"
        assert found.engine.provider == ("cuda" if name.startswith("cuda") else "auto")
        assert bool(found.tls.certificate) == name.startswith("tls")
        assert all(each["name"].startswith("CONVOY_") for each in workload.container.get("env", ()))


def test_unknown_variable_would_be_seen() -> None:
    with pytest.raises(errors.BadConfig, match="CONVOY_ENGINE__PROVIDERS is no setting"):
        config.load(environment={"CONVOY_ENGINE__PROVIDERS": "cuda"})


def exposed() -> set[int]:
    (ports,) = re.findall(r"^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return set(map(int, ports.split()))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_ports_are_those_of_the_server_and_of_its_image(name: str, tmp_path: Path) -> None:
    for workload in workloads(rendered(name)):
        server = configuration(name, workload, tmp_path).server
        meant = {
            **dict.fromkeys(("http", "http1"), server.http_port),
            **dict.fromkeys(("grpc", "h2c"), server.grpc_port),
            "metrics": server.metrics_port,
        }
        assert exposed() == {server.http_port, server.grpc_port, server.metrics_port}
        for port in workload.container["ports"]:
            assert port["containerPort"] == meant[port["name"]]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_ports_that_others_name_are_ports_of_the_container(name: str) -> None:
    everything = rendered(name)
    for workload in workloads(everything):
        ports = {port["name"]: port["containerPort"] for port in workload.container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = workload.container.get(probe, {})
            if "grpc" in asked:
                assert asked["grpc"]["port"] == ports.get("grpc", ports.get("h2c"))
            if "httpGet" in asked:
                assert asked["httpGet"]["port"] in ("http", "http1")
                assert asked["httpGet"]["port"] in ports
        if workload.document["kind"] == "ServingRuntime":
            assert workload.document["spec"]["annotations"]["prometheus.kserve.io/port"] == "8002"
            continue
        services = [each for each in everything if each["kind"] == "Service"]
        assert len(services) == 2
        for service in services:
            for port in service["spec"]["ports"]:
                assert port["port"] == ports[port["targetPort"]]
                assert port["name"] == port["targetPort"]
        policy = of_kind(everything, "NetworkPolicy")
        named = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert named == set(ports)
    monitors = [each for each in everything if each["kind"] == "ServiceMonitor"]
    for monitor in monitors:
        service = of_kind(everything, "Service", "convoy")
        ours = {port["name"] for port in service["spec"]["ports"]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} == {"metrics"} <= ours


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_path_is_in_a_volume_that_is_mounted_there(name: str, tmp_path: Path) -> None:
    for workload in workloads(rendered(name)):
        found = configuration(name, workload, tmp_path)
        mounts = {mount["mountPath"]: mount for mount in workload.container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
        assert {mount["name"] for mount in mounts.values()} <= set(volumes)

        def volume_at(path: str, mounts: Document = mounts, volumes: Document = volumes) -> Document:
            place = next(place for place in mounts if Path(path).is_relative_to(place))
            return {"writable": not mounts[place].get("readOnly", False), **volumes[mounts[place]["name"]]}

        options = dict(argument.removeprefix("--").split("=", 1) for argument in workload.container["args"][1:])
        if "repository" in options:
            assert not volume_at(options["repository"])["writable"]
            assert not volume_at(options["config"])["writable"]
            assert (
                volume_at(options["config"])["configMap"]["name"]
                == of_kind(rendered(name), "ConfigMap")["metadata"]["name"]
            )
            assert Path(options["config"]).name in of_kind(rendered(name), "ConfigMap")["data"]
        for path in filter(None, (found.tls.certificate, found.tls.key)):
            assert not volume_at(path)["writable"]
            assert volume_at(path)["secret"]["secretName"] == "convoy-tls"
            assert Path(path).name in ("tls.crt", "tls.key")  # as secrets of the type kubernetes.io/tls have them
        # Not the mounted folder itself: that belongs to root, and others may write there.
        assert str(Path(found.repository.cache).parent) in mounts
        # Where a server with a read-only root writes, and nowhere else.
        for path in (found.repository.cache, "/dev/shm"):
            assert volume_at(path)["writable"]
            assert "emptyDir" in volume_at(path)
        assert sum(not mount.get("readOnly", False) for mount in mounts.values()) == 2


_SUFFIXES = ("", "_sum", "_count", "_bucket")


def series() -> dict[str, set[str]]:
    """The labels of every series of ours, by name."""
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            for suffix in _SUFFIXES:
                found[name + suffix] = set(metric._labelnames)
    return found


def unknown_series(text: str) -> list[str]:
    """The series, labels and values in a text that no server has."""
    known, found = series(), []
    for name, _, selectors in re.findall(r"\b(convoy_[a-z_]+)(\{([^}]*)\})?", text):
        if name not in known:
            found.append(name)
            continue
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', selectors):
            if label not in known[name] | {"job", "instance", "namespace"}:
                found.append(f"{name}{{{label}}}")
            values = {"stage": set(metrics.STAGES), "reason": _REASONS}.get(label, set(value.split("|")))
            found += [f"{label}={each}" for each in value.split("|") if each not in values]
    return found


_REASONS = {
    each.reason for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ConvoyError)
}


def test_every_series_in_the_files_is_one_of_the_server() -> None:
    assert {file.name: found for file in FILES if (found := unknown_series(file.read_text()))} == {}
    assert unknown_series(PAGE.read_text()) == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("convoy_waiting_seconds", ["convoy_waiting_seconds"]),
        ('convoy_stage_duration_seconds_sum{stage="wait"}', ["stage=wait"]),
        ('convoy_refusals_total{reason=~"QUEUE_FULL|LATE"}', ["reason=LATE"]),
        ('convoy_requests_in_flight{model="a"}', ["convoy_requests_in_flight{model}"]),
    ],
)
def test_unknown_series_would_be_seen(query: str, found: list[str]) -> None:
    assert unknown_series(query) == found


# ---- starting, stopping, moving


@pytest.mark.parametrize("name", COMBINATIONS)
def test_end_of_a_pod_leaves_time_for_the_whole_drain(name: str, tmp_path: Path) -> None:
    for workload in workloads(rendered(name)):
        pod = workload.pod
        if workload.document["kind"] == "ServingRuntime":
            pod = of_kind(rendered(name), "InferenceService")["spec"]["predictor"]
            if workload.document["metadata"]["name"] != pod["model"]["runtime"]:
                continue  # Knative ends its pods as it likes
        server = configuration(name, workload, tmp_path).server
        before = workload.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = before + server.lame_duck_seconds + server.grace_seconds + watch._LAST_GRACE
        assert drain + 1 <= pod["terminationGracePeriodSeconds"] <= 2 * drain
        # Readiness must have failed, and nodes have heard of it, while requests are still accepted.
        assert before + server.lame_duck_seconds >= 5


@pytest.mark.parametrize("name", COMBINATIONS)
def test_start_may_take_as_long_as_a_first_profile(name: str) -> None:
    for workload in workloads(rendered(name)):
        if len(workload.container["ports"]) == 1:
            continue  # of Knative, which has its own deadline of a rollout
        probe = workload.container["startupProbe"]
        window = probe["periodSeconds"] * probe["failureThreshold"]
        assert window >= FIRST_PROFILE * (3 if name.startswith("cuda") else 1)
        if workload.document["kind"] == "Deployment":
            assert workload.document["spec"]["progressDeadlineSeconds"] > window
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_probes_are_over_grpc_in_plain_text_and_over_https_with_a_certificate(name: str) -> None:
    for workload in workloads(rendered(name)):
        secured = "CONVOY_TLS__CERTIFICATE" in variables(workload)
        for probe in ("startupProbe", "readinessProbe"):
            asked = workload.container.get(probe)
            if asked is None:
                assert len(workload.container["ports"]) == 1
                continue
            assert ("httpGet" if secured else "grpc") in asked
            assert ("grpc" if secured else "httpGet") not in asked
            if secured:
                assert (asked["httpGet"]["path"], asked["httpGet"]["scheme"]) == ("/readyz", "HTTPS")
        if "livenessProbe" in workload.container:
            get = workload.container["livenessProbe"]["httpGet"]
            assert (get["path"], get["scheme"]) == ("/livez", "HTTPS" if secured else "HTTP")


@pytest.mark.parametrize("name", SERVED)
def test_update_and_eviction_leave_replicas_that_serve(name: str) -> None:
    workload = deployment(name)
    spec = workload.document["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    budget = of_kind(rendered(name), "PodDisruptionBudget")["spec"]
    scaled = [each for each in rendered(name) if each["kind"] == "ScaledObject"]
    least = scaled[0]["spec"]["minReplicaCount"] if scaled else spec["replicas"]
    assert budget["minAvailable"] < least
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    keys = {each["topologyKey"] for each in workload.pod["topologySpreadConstraints"]}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


@pytest.mark.parametrize("name", SERVED)
def test_selectors_select_the_pods(name: str) -> None:
    workload = deployment(name)
    labels = workload.document["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        *(each["spec"]["selector"] for each in rendered(name) if each["kind"] == "Service"),
        of_kind(rendered(name), "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(rendered(name), "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        workload.document["spec"]["selector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in workload.pod["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)


@pytest.mark.parametrize("name", SERVED)
def test_one_service_balances_and_one_has_the_addresses_of_all(name: str) -> None:
    ordinary, headless = (of_kind(rendered(name), "Service", each)["spec"] for each in ("convoy", "convoy-headless"))
    assert "clusterIP" not in ordinary
    assert headless["clusterIP"] == "None"
    secured = name.startswith("tls")
    for service in (ordinary, headless):
        protocols = {port["name"]: port["appProtocol"] for port in service["ports"]}
        assert protocols["grpc"] == ("https" if secured else "kubernetes.io/h2c")
        assert {protocols[each] for each in protocols if each != "grpc"} == {"https" if secured else "http"}


# ---- what a pod may do


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_container_is_confined(name: str) -> None:
    for workload in workloads(rendered(name)):
        pod = workload.pod.get("securityContext", {})
        for container in (*workload.pod["containers"], *workload.pod.get("initContainers", ())):
            context = {**pod, **container["securityContext"]}
            assert context["readOnlyRootFilesystem"] is True
            assert context["runAsNonRoot"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["privileged"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert {"cpu", "memory"} <= set(limits) & set(requests)
        (user,) = re.findall(r"^USER (\d+):\d+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert {**pod, **workload.container["securityContext"]}["runAsUser"] == int(user)


@pytest.mark.parametrize("name", SERVED)
def test_pod_has_no_token_of_the_cluster_and_no_way_out_but_for_git(name: str) -> None:
    account = of_kind(rendered(name), "ServiceAccount")
    pod = deployment(name).pod
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert pod["automountServiceAccountToken"] is account["automountServiceAccountToken"] is False
    policy = of_kind(rendered(name), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    out = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert out == ({53, 443} if "initContainers" in pod else set())


@pytest.mark.parametrize("name", COMBINATIONS)
def test_images_have_a_registry_and_a_tag(name: str) -> None:
    for workload in workloads(rendered(name)):
        for container in (*workload.pod["containers"], *workload.pod.get("initContainers", ())):
            assert re.fullmatch(r"[a-z.0-9]+\.[a-z]+/[a-z/-]+:v?\d+\.\d+\.\d+[a-z-]*", container["image"])


def test_gpu_is_asked_for_with_its_image_and_its_provider() -> None:
    for name in OVERLAYS:
        container = deployment(name).container
        of_gpu = name == "cuda"
        assert (container["resources"]["limits"].get("nvidia.com/gpu") == "1") is of_gpu
        assert container["image"].endswith("-cuda" if of_gpu else "-cpu")
    assert "runtimeClassName" not in deployment("cuda").pod
    assert deployment("cuda with components").pod["runtimeClassName"] == "nvidia"


@pytest.mark.parametrize("name", [name for name in SERVED if "components" in name])
def test_repository_from_git_is_there_before_the_server_starts(name: str) -> None:
    workload = deployment(name)
    (sidecar,) = workload.pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["httpGet"]["path"] == "/"
    options = dict(each.removeprefix("--").split("=", 1) for each in sidecar["args"])
    (bound,) = sidecar["ports"]
    assert options["http-bind"] == f":{bound['containerPort']}"
    written = next(mount["name"] for mount in sidecar["volumeMounts"] if mount["mountPath"] == options["root"])
    read = next(mount for mount in workload.container["volumeMounts"] if mount["name"] == written)
    assert read["readOnly"] is True
    assert f"--repository={read['mountPath']}/{options['link']}" in workload.container["args"]


# ---- scaling

# Of KEDA's trigger `prometheus`. In the CRD, the metadata of a trigger are any texts.
_REQUIRED = {"serverAddress", "query", "threshold"}
_OPTIONAL = {"activationThreshold", "ignoreNullValues", "namespace", "customHeaders", "queryParameters", "timeout",
             "unsafeSsl", "authModes"}  # fmt: skip


def triggers() -> dict[str, dict[str, str]]:
    scaled = of_kind(rendered("cpu with components"), "ScaledObject")
    assert {each["type"] for each in scaled["spec"]["triggers"]} == {"prometheus"}
    return {each["name"]: each["metadata"] for each in scaled["spec"]["triggers"]}


def test_triggers_have_the_keys_of_their_type() -> None:
    for metadata in triggers().values():
        assert _REQUIRED <= set(metadata) <= _REQUIRED | _OPTIONAL
        assert float(metadata["threshold"]) > 0
        assert metadata["ignoreNullValues"] == "false"


def test_scaled_object_alone_says_how_many_replicas_there_are() -> None:
    for name in SERVED:
        scaled = [each for each in rendered(name) if each["kind"] == "ScaledObject"]
        spec = deployment(name).document["spec"]
        assert ("replicas" in spec) is not bool(scaled)
        for each in scaled:
            target = each["spec"]["scaleTargetRef"]
            document = deployment(name).document
            assert target == {key: document[key] for key in ("apiVersion", "kind")} | {"name": "convoy"}
            limits = each["spec"]
            assert limits["minReplicaCount"] <= limits["fallback"]["replicas"] <= limits["maxReplicaCount"]
            behaviour = limits["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
            assert behaviour["scaleUp"]["stabilizationWindowSeconds"] == 0
            assert behaviour["scaleDown"]["stabilizationWindowSeconds"] == 300


_QUEUE = 'convoy_stage_duration_seconds_{}{{job="convoy",instance="{}",model="a",version="1",stage="{}"}}'
_FLIGHT = 'convoy_requests_in_flight{job="convoy",instance="a"}'
# (query, series over five minutes in steps of 15 s, its value at the end; None: it is empty)
SITUATIONS: dict[str, tuple[str, list[tuple[str, str]], float | None]] = {
    "two replicas, one with a queue": (
        "queue-seconds",
        [
            (_QUEUE.format("sum", "a", "queue"), "0+3x20"),  # 0.2 s for each of 15 images
            (_QUEUE.format("count", "a", "queue"), "0+15x20"),
            (_QUEUE.format("sum", "b", "queue"), "0+0.15x20"),  # 0.01 s
            (_QUEUE.format("count", "b", "queue"), "0+15x20"),
            (_QUEUE.format("sum", "a", "run"), "0+100x20"),  # another stage
            (_FLIGHT, "3x20"),
        ],
        0.21,
    ),
    "no requests any more": (
        "queue-seconds",
        [
            (_QUEUE.format("sum", "a", "queue"), "7x20"),
            (_QUEUE.format("count", "a", "queue"), "9x20"),
            (_FLIGHT, "0x20"),
        ],
        0,
    ),
    "no request yet": ("queue-seconds", [(_FLIGHT, "0x20")], 0),
    "nothing is scraped": ("queue-seconds", [('up{job="convoy"}', "0x20")], None),
    "another job": ("queue-seconds", [(_FLIGHT.replace('convoy"', 'other"'), "1x20")], None),
    "refusals of two replicas": (
        "refusals",
        [
            ('convoy_refusals_total{job="convoy",instance="a",model="a",reason="QUEUE_FULL"}', "0+30x20"),
            ('convoy_refusals_total{job="convoy",instance="b",model="a",reason="PREDICTED_LATE"}', "0+15x20"),
            ('convoy_refusals_total{job="convoy",instance="b",model="a",reason="BAD_IMAGE"}', "0+900x20"),
            (_FLIGHT, "3x20"),
        ],
        3,
    ),
    "no refusals": ("refusals", [(_FLIGHT, "3x20")], 0),
    "nothing is scraped, for refusals": ("refusals", [('up{job="convoy"}', "0x20")], None),
}


def promtool(situation: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A query judged by Prometheus' own engine."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    query, given, value = SITUATIONS[situation]
    # The value to the microsecond: promtool compares floats exactly.
    expression = f"round(({triggers()[query]['query']}), 0.000001)"
    samples = [] if value is None else [{"labels": "{}", "value": value}]
    test = {
        "interval": "15s",
        "input_series": [{"series": series, "values": values} for series, values in given],
        "promql_expr_test": [{"expr": expression, "eval_time": "5m", "exp_samples": samples}],
    }
    (folder / "test.yaml").write_text(json.dumps({"evaluation_interval": "15s", "tests": [test]}))
    command = [program, "test", "rules", str(folder / "test.yaml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_query_is_the_seconds_of_queue_of_all_replicas_or_their_refusals(situation: str, tmp_path: Path) -> None:
    done = promtool(situation, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wrong_value_of_a_query_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query, given, _ = SITUATIONS["no refusals"]
    monkeypatch.setitem(SITUATIONS, "wrong", (query, given, 1))
    assert promtool("wrong", tmp_path).returncode == 1


def test_scrapes_give_the_label_that_queries_ask_for() -> None:
    for name in SERVED:
        for monitor in (each for each in rendered(name) if each["kind"] == "ServiceMonitor"):
            services = [each for each in rendered(name) if each["kind"] == "Service" and selected(monitor, each)]
            assert [each["metadata"]["name"] for each in services] == ["convoy"]  # `job` is the name of the service
            (endpoint,) = monitor["spec"]["endpoints"]
            assert endpoint["path"] == "/metrics"
            assert endpoint["scheme"] == ("https" if name.startswith("tls") else "http")
            assert ("tlsConfig" in endpoint) is name.startswith("tls")


def selected(monitor: Document, service: Document) -> bool:
    labels = service["metadata"]["labels"]
    tests: dict[str, Callable[[dict[str, Any]], bool]] = {
        "In": lambda each: labels.get(each["key"]) in each["values"],
        "DoesNotExist": lambda each: each["key"] not in labels,
    }
    return all(tests[each["operator"]](each) for each in monitor["spec"]["selector"]["matchExpressions"])


# ---- KServe


def runtimes() -> dict[str, Workload]:
    return {each.document["metadata"]["name"]: each for each in workloads(rendered("kserve"))}


def test_first_port_is_the_one_that_becomes_port_80() -> None:
    names = {name: [port["name"] for port in each.container["ports"]] for name, each in runtimes().items()}
    assert names["convoy"][:2] == ["http1", "h2c"]
    assert names["convoy-grpc"] == ["h2c"]  # Knative takes one


def test_runtimes_speak_what_their_ports_do() -> None:
    protocols = {name: each.document["spec"]["protocolVersions"] for name, each in runtimes().items()}
    assert protocols == {"convoy": ["v2", "grpc-v2"], "convoy-grpc": ["grpc-v2"]}
    for each in runtimes().values():
        assert each.document["spec"]["multiModel"] is False
        assert each.document["spec"]["annotations"]["prometheus.kserve.io/path"] == "/metrics"


def test_model_has_the_name_of_its_service_and_the_folder_of_its_storage() -> None:
    for each in runtimes().values():
        assert "--model={{.Name}}=/mnt/models" in each.container["args"]


def test_formats_have_one_priority_each_and_one_runtime_that_is_chosen_for_them() -> None:
    chosen = [
        (each["name"], each["priority"])
        for runtime in runtimes().values()
        for each in runtime.document["spec"]["supportedModelFormats"]
        if each["autoSelect"]
    ]
    assert sorted(chosen) == [("convoy", 1), ("onnx", 3)]


def test_inference_service_names_a_runtime_that_supports_it() -> None:
    service = of_kind(rendered("kserve"), "InferenceService")
    model = service["spec"]["predictor"]["model"]
    spec = runtimes()[model["runtime"]].document["spec"]
    assert model["modelFormat"] in [
        {key: each[key] for key in ("name", "version")} for each in spec["supportedModelFormats"]
    ]
    assert model["protocolVersion"] in spec["protocolVersions"]
    assert re.fullmatch(config_name(), service["metadata"]["name"])  # clients call the model so
    assert service["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Standard"}


def config_name() -> str:
    from convoy.service.repository import NAME

    return NAME.pattern


# ---- the page


def shown() -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(3))
def test_files_of_the_page_are_rendered_and_fit(number: int, tmp_path: Path) -> None:
    text = shown()[number]
    here = tmp_path / "here"
    here.mkdir()
    for path in re.findall(r"deploy/kubernetes/[\w/-]+", text):
        assert (ROOT / path).is_dir(), path
    (tmp_path / "convoy").symlink_to(ROOT)
    (here / "kustomization.yaml").write_text(text)
    (here / "lenet5.onnx").write_bytes(b"\x00\xff")
    found = manifests.kustomize(here)
    for version in schemas.KUBERNETES:
        assert [fault for each in found for fault in schemas.faults(each, version)] == []
    assert [fault for each in found for fault in wrong_units(each)] == []


def test_every_file_of_the_page_is_tried() -> None:
    assert len(shown()) == 3
