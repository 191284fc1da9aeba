"""Probes, asked of a real server as a kubelet asks them, through the life of a pod; and what KServe starts."""

import http.client
import os
import signal
import ssl
import threading
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from convoy.service.client.client import Client
from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.pb import inference_pb2 as pb
from tests.deploy import manifests
from tests.deploy.manifests import deployment, of_kind, rendered, variables
from tests.deploy.test_followed_links import PIXELS, network
from tests.service import networks
from tests.service.calls import method
from tests.service.certificates import Authority
from tests.service.running import Server
from tools.ports import free_ports

# What a kubelet sends.
HEADERS = {"User-Agent": "kube-probe/1.37", "Accept": "*/*", "Connection": "close"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def succeeds(server: Server, probe: Mapping[str, Any]) -> bool:
    """What a probe of a container finds at a server: of gRPC or HTTP, within its time, without a second try."""
    seconds = probe["timeoutSeconds"]
    if "grpc" in probe:
        asked = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        options = [("grpc.primary_user_agent", HEADERS["User-Agent"]), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.grpc, options) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=seconds)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    get = probe["httpGet"]
    address = server.http.partition("://")[2]
    if get["scheme"] == "HTTPS":
        context = ssl._create_unverified_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(address, timeout=seconds, context=context)
    else:
        connection = http.client.HTTPConnection(address, timeout=seconds)
    try:
        connection.request("GET", get["path"], headers=HEADERS)
        return 200 <= connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Pod(NamedTuple):
    """A server started as its container would be, with folders of the test in the place of volumes."""

    server: Server
    container: Mapping[str, Any]
    cache: Path
    credentials: Credentials

    def probes(self) -> tuple[bool, ...]:
        """Whether the startup, readiness and liveness probe succeed."""
        return tuple(succeeds(self.server, self.container[each]) for each in PROBES)

    def wait_for(self, wanted: tuple[bool, ...]) -> None:
        """Asks until the probes find this: on a busy machine, one may be late."""
        deadline = time.monotonic() + 60
        while (found := self.probes()) != wanted:
            assert time.monotonic() < deadline, found

    def client(self) -> Client:
        return Client(self.server.grpc, credentials=self.credentials, retry=False)

    def serve(self) -> None:
        """Brings the first model, and asks before and afterwards."""
        # Nothing to serve yet: no traffic, and no reason for a restart before the startup probe gives up.
        self.wait_for((False, False, True))
        networks.save_bytes(network(0), self.server.repository, "net")
        self.wait_for((True, True, True))
        with self.client() as client:
            assert client.classify(PIXELS, "net").labels[0].name == "a"


def started(name: str, folder: Path, *settings: str) -> Pod:
    """The pod of an overlay on an empty repository; one with TLS for callers with certificates and tokens alone."""
    workload = deployment(name)
    repository, cache = folder / "repository", folder / "cache"
    repository.mkdir()
    # As the mode of an emptyDir with fsGroup: everybody may write, and what is made there has its group.
    cache.mkdir()
    cache.chmod(0o2777)
    environment = variables(workload)
    credentials = PLAIN
    if "CONVOY_TLS__CERTIFICATE" in environment:
        authority = Authority(folder)
        pair, own = authority.sign("server"), authority.sign("client")
        token = folder / "token"
        token.write_text("convoy_" + "a" * 43)
        callers = folder / "callers.toml"
        digest = sha256(token.read_bytes()).hexdigest()
        callers.write_text(f'robot = {{ sha256 = "{digest}", models = ["*"], scopes = ["metrics"] }}\n')
        environment |= {
            "CONVOY_TLS__CERTIFICATE": str(pair.certificate),
            "CONVOY_TLS__KEY": str(pair.key),
            "CONVOY_TLS__CLIENT_CA": str(authority.certificate),
            "CONVOY_ACCESS__CALLERS": str(callers),
        }
        credentials = Credentials(
            ca=str(authority.certificate), certificate=str(own.certificate), key=str(own.key), token=token.read_text()
        )
    serving = []
    for argument in workload.container["args"][1:]:
        option, _, value = argument.partition("=")
        places = {"--repository": repository, "--config": manifests.settings_file(name, folder)}
        serving.append(f"{option}={places.get(option, value)}")
    own = ["server.host=127.0.0.1", f"repository.cache={cache / 'convoy'}", "repository.poll_seconds=0.5"]
    server = Server(repository, [*own, *settings], wait=False, environment=environment, serving=serving)
    return Pod(server, workload.container, cache, credentials)


def written(pid: int) -> list[str]:
    """The files that a process has open for writing, without its output and those that have no place on a disk."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
            lines = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().splitlines()
        except OSError:
            continue  # closed meanwhile
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
        if flags & os.O_ACCMODE == os.O_RDONLY or int(descriptor.name) <= 2:
            continue
        if target.startswith("/") and not target.startswith("/memfd:"):
            found.append(target)
    return found


def test_file_that_is_written_elsewhere_would_be_seen(tmp_path: Path) -> None:
    with (tmp_path / "mark").open("w"), (tmp_path / "mark").open():
        assert [each for each in written(os.getpid()) if each.startswith(str(tmp_path))] == [str(tmp_path / "mark")]


def test_probes_follow_the_life_of_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)  # a pod has none
    # Longer than in the overlay: a busy machine has to ask within it.
    pod = started("cpu", tmp_path, "server.lame_duck_seconds=10")
    with pod.server as server:
        pod.serve()
        for pid in (server.process.pid, *server.processes("engine"), *server.processes("frontend")):
            places = (str(pod.cache), "/dev/shm/", "/dev/null", "/dev/nvidia")
            assert [each for each in written(pid) if not each.startswith(places)] == []
        assert (pod.cache / "convoy").stat().st_mode & 0o777 == 0o700

        # The end: not ready at once, accepted for a little longer, everything answered, in time.
        with pod.client() as client:
            client.classify(PIXELS, "net")
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("draining")
            while succeeds(server, pod.container["readinessProbe"]):
                assert server.process.poll() is None
            assert client.classify(PIXELS, "net").labels[0].name == "a"
        assert server.process.wait(deployment("cpu").pod["terminationGracePeriodSeconds"]) == 0
    assert pod.probes() == (False, False, False)


def test_probes_of_a_pod_with_certificates_need_none(tmp_path: Path) -> None:
    pod = started("tls", tmp_path, "server.lame_duck_seconds=0")
    with pod.server as server:
        pod.serve()
        # Why this overlay has probes of its own.
        plain = deployment("cpu").container
        assert [succeeds(server, plain[each]) for each in PROBES] == [False] * 3
        # Without a certificate and a token, probes are all that there is.
        assert not succeeds(server, {"httpGet": {"path": "/v2", "scheme": "HTTPS"}, "timeoutSeconds": 5})


def test_server_that_starts_is_at_no_moment_ready(tmp_path: Path) -> None:
    # A probe may ask as soon as the port is open, and traffic would follow.
    (port,) = free_ports(1)
    answers: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
                try:
                    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
                    answers.append(answer.status)
                except grpc.RpcError:
                    stop.wait(0.001)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with Server(tmp_path, ["server.lame_duck_seconds=0"], wait=False, grpc_port=str(port)) as server:
            server.wait_for_log("listening")
            deadline = time.monotonic() + 30
            while not answers:
                assert time.monotonic() < deadline
                stop.wait(0.01)
    finally:
        stop.set()
        asking.join()
    assert set(answers) == {health_pb2.HealthCheckResponse.NOT_SERVING}


def test_kserve_starts_a_server_with_the_model_of_its_name(tmp_path: Path) -> None:
    service = of_kind(rendered("kserve"), "InferenceService")
    runtime = of_kind(rendered("kserve"), "ServingRuntime", service["spec"]["predictor"]["model"]["runtime"])
    (container,) = runtime["spec"]["containers"]
    name = service["metadata"]["name"]
    cache = tmp_path / "cache"
    cache.mkdir()
    arguments = []
    # One with a version in its storage, one with a file alone.
    for model, stored in ((name, "1/model.onnx"), ("other", "anything.onnx")):
        storage = tmp_path / model  # /mnt/models
        (storage / stored).parent.mkdir(parents=True)
        (storage / stored).write_bytes(network(0))
        for each in container["args"][1:]:
            arguments.append(each.replace("{{.Name}}", model).replace("/mnt/models", str(storage)))
    environment = {each["name"]: each["value"] for each in container["env"]}
    environment |= {"CONVOY_SERVER__HOST": "127.0.0.1", "CONVOY_REPOSITORY__CACHE": str(cache / "convoy")}
    lame = ["server.lame_duck_seconds=0"]
    with Server(tmp_path, lame, environment=environment, serving=arguments) as server:
        Pod(server, container, cache, PLAIN).wait_for((True, True, True))
        status, _ = server.get(f"{server.http}/v2/models/{name}/ready")
        assert status == 200
        with grpc.insecure_channel(server.grpc) as channel:
            assert method(channel, "ModelReady")(pb.ModelReadyRequest(name=name)).ready
        with Client(server.grpc) as client:
            assert [client.classify(PIXELS, each).labels[0].name for each in (name, "other")] == ["a", "a"]
        # What the autoscaler asks Prometheus for.
        queue = {"model": name, "stage": "queue"}
        assert server.wait_for_total("convoy_stage_duration_seconds_count", 1, **queue) == 1
        assert server.total("convoy_stage_duration_seconds_sum", **queue) >= 0
        assert ("convoy_requests_in_flight", frozenset()) in server.samples()
