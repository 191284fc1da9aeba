"""The administration port of a whole server: models on request, shared memory, the log and traces; and who may call."""

import os
import re
import shutil
import signal
import socket
import stat
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from convoy.service.commands.token import line
from convoy.service.pb import inference_pb2 as pb
from tests.service import networks
from tests.service.calls import INFERENCE, infer_request, method, outputs, reason, stream
from tests.service.certificates import Authority
from tests.service.running import Server
from tests.service.test_overload import PATIENT, _wait_until, standing

pytestmark = pytest.mark.both_transports

SECONDS = 60  # for a call; the trial of a new file gives way to whatever else runs on the machine
SETTINGS = ["server.lame_duck_seconds=0", "admin.enabled=true"]
ADMIN = ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"]
ADMIN += [f"SystemSharedMemory{name}" for name in ("Status", "Register", "Unregister")]
VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)
Load, Unload = pb.RepositoryModelLoadRequest, pb.RepositoryModelUnloadRequest
Values = pb.TraceSettingRequest.SettingValue


class Caller:
    """Calls of one port."""

    def __init__(self, target: str, token: str = "") -> None:
        # Not shared with other channels: each connection may reach another front end.
        self.channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        self._metadata = [("authorization", f"Bearer {token}")] if token else None

    def __call__(self, name: str, request: Any) -> Any:
        return method(self.channel, name)(request, timeout=SECONDS, metadata=self._metadata)

    def refusal(self, name: str, request: Any) -> tuple[str, str, str]:
        """Status, reason and message of a call that must be refused."""
        with pytest.raises(grpc.RpcError) as caught:
            self(name, request)
        error: Any = caught.value
        return error.code().name, reason(error), error.details()

    def states(self, *, ready: bool = False) -> dict[str, str]:
        index = self("RepositoryIndex", pb.RepositoryIndexRequest(ready=ready))
        return {row.name: " ".join(filter(None, (row.state, row.reason))) for row in index.models}


class Memory:
    """A client's own shared memory, and the region of it that is registered."""

    def __init__(self, admin: Caller, nbytes: int = 4096) -> None:
        self.memory = SharedMemory(create=True, size=nbytes)
        self.name = f"region-{uuid.uuid4()}"
        self.file = Path("/dev/shm") / self.memory.name
        self.admin = admin
        self.register(nbytes)

    def register(self, nbytes: int, offset: int = 0) -> None:
        request = pb.SystemSharedMemoryRegisterRequest(
            name=self.name, key=f"/{self.memory.name}", offset=offset, byte_size=nbytes
        )
        self.admin("SystemSharedMemoryRegister", request)

    def unregister(self) -> None:
        self.admin("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=self.name))

    def end(self) -> None:
        self.unregister()
        self.memory.close()
        self.memory.unlink()

    def put(self, values: NDArray[np.generic], offset: int = 0) -> None:
        self.memory.buf[offset : offset + values.nbytes] = values.tobytes()

    def take(self, nbytes: int, offset: int = 0) -> NDArray[np.float32]:
        return np.frombuffer(bytes(self.memory.buf[offset : offset + nbytes]), np.float32)

    def infer(self, *, given: int | None = 0, wanted: int | None = 1024) -> pb.ModelInferRequest:
        """VALUES for `doubler`, with the offsets of input and output; None: in the message."""
        request = infer_request("doubler", VALUES)
        if given is not None:
            self.put(VALUES, given)
            del request.raw_input_contents[:]
            self.place(request.inputs[0].parameters, VALUES.nbytes, given)
        output = request.outputs.add(name="y")
        if wanted is not None:
            self.place(output.parameters, VALUES.nbytes, wanted)
        return request

    def place(self, parameters: Any, nbytes: int, offset: int) -> None:
        parameters["shared_memory_region"].string_param = self.name
        parameters["shared_memory_byte_size"].int64_param = nbytes
        parameters["shared_memory_offset"].int64_param = offset


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Server]:
    """Two front ends. Nothing is killed for its silence: tests stop processes."""
    repository = tmp_path_factory.mktemp("repository")
    networks.save(networks.doubler(), repository, "doubler")
    networks.save(networks.classifier(), repository, "letters")
    networks.save(networks.waves(), repository, "waves")
    settings = ["server.frontends=2", "server.heartbeat_seconds=0", "repository.poll_seconds=3600"]
    settings += ["admin.port=0", "admin.shared_memory=true"]
    with Server(repository, [*SETTINGS, *settings]) as server:
        yield server


@pytest.fixture
def admin(server: Server) -> Iterator[Caller]:
    caller = Caller(server.admin)
    with caller.channel:
        yield caller


@pytest.fixture
def ordinary(server: Server) -> Iterator[Caller]:
    caller = Caller(server.grpc)
    with caller.channel:
        yield caller


@pytest.fixture
def memory(admin: Caller) -> Iterator[Memory]:
    memory = Memory(admin)
    yield memory
    memory.end()


def everywhere(server: Server, act: Callable[[Caller], None]) -> None:
    """Acts over many connections, which the system spreads over both front ends."""
    for _ in range(16):
        caller = Caller(server.grpc)
        with caller.channel:
            act(caller)


def test_model_is_unloaded_and_loaded_again_on_request(server: Server, admin: Caller) -> None:
    def refused(caller: Caller) -> None:
        status, _, words = caller.refusal("ModelInfer", infer_request("doubler", VALUES))
        assert (status, words) == ("UNAVAILABLE", "model 'doubler' is not served: unloaded on request")

    def served(caller: Caller) -> None:
        np.testing.assert_array_equal(outputs(caller("ModelInfer", infer_request("doubler", VALUES)))["y"], VALUES * 2)

    for _ in range(3):
        admin("RepositoryModelUnload", Unload(model_name="doubler"))
        everywhere(server, refused)
        assert admin.states() == {"doubler": "UNAVAILABLE unloaded on request", "letters": "READY", "waves": "READY"}
        assert admin.states(ready=True) == {"letters": "READY", "waves": "READY"}
        admin("RepositoryModelUnload", Unload(model_name="doubler"))  # a second time changes nothing
        admin("RepositoryModelLoad", Load(model_name="doubler"))
        everywhere(server, served)
        assert admin.states(ready=True) == {"doubler": "READY", "letters": "READY", "waves": "READY"}


def test_load_answers_once_the_newest_version_serves_or_says_why_it_does_not(server: Server, admin: Caller) -> None:
    root = server.repository
    networks.save(networks.doubler(), root, "fresh")
    admin("RepositoryModelLoad", Load(model_name="fresh"))
    admin("ModelInfer", infer_request("fresh", VALUES))
    networks.save_bytes(b"not a network", root, "fresh", 2)
    status, why, words = admin.refusal("RepositoryModelLoad", Load(model_name="fresh"))
    assert (status, why) == ("UNAVAILABLE", "MODEL_UNAVAILABLE")
    assert words.startswith("version 2 of model 'fresh' is not loaded: ")
    assert admin("ModelInfer", infer_request("fresh", VALUES)).model_version == "1"
    networks.save(networks.doubler(), root, "fresh", 2)
    admin("RepositoryModelLoad", Load(model_name="fresh"))
    assert admin("ModelInfer", infer_request("fresh", VALUES)).model_version == "2"
    shutil.rmtree(root / "fresh")
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        kind = Load if name == "RepositoryModelLoad" else Unload
        assert admin.refusal("RepositoryModelLoad", Load(model_name="fresh"))[:2] == ("NOT_FOUND", "UNKNOWN_MODEL")
        for model in ("fresh", "nobody", "../doubler", "", "a" * 1000, "Doubler"):
            status, why, words = admin.refusal(name, kind(model_name=model))
            assert (status, why) == ("NOT_FOUND", "UNKNOWN_MODEL")
            assert words.endswith("is not in the repository")


def test_overrides_of_a_load_are_refused_by_name(server: Server, admin: Caller) -> None:
    request = Load(model_name="doubler")
    request.parameters["config"].string_param = '{"backend": "python"}'
    status, why, words = admin.refusal("RepositoryModelLoad", request)
    assert (status, why) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert words == "parameter 'config' is not accepted: models come only from the server's repository"
    request = Load(model_name="doubler")
    request.parameters["file:../../1/model.onnx"].bytes_param = b"x"
    assert "'file:../../1/model.onnx' is not accepted" in admin.refusal("RepositoryModelLoad", request)[2]
    assert not list(server.repository.glob("**/config"))


def test_unloaded_model_stays_so_when_an_engine_dies(server: Server, admin: Caller, ordinary: Caller) -> None:
    admin("RepositoryModelUnload", Unload(model_name="letters"))
    before = len(server.log)
    os.kill(server.children()["engine"], signal.SIGKILL)
    server.wait_for_log("model doubler version 1 serves", after=before)
    server.wait_for_log("ready", after=before)
    assert ordinary.states()["letters"] == "UNAVAILABLE unloaded on request"
    admin("RepositoryModelLoad", Load(model_name="letters"))
    assert ordinary.states()["letters"] == "READY"


def test_tensors_go_in_and_out_of_shared_memory(server: Server, memory: Memory) -> None:
    def infer(caller: Caller) -> None:
        memory.put(np.zeros(8, np.float32), 1024)
        response = caller("ModelInfer", memory.infer())
        np.testing.assert_array_equal(memory.take(VALUES.nbytes, 1024).reshape(2, 4), VALUES * 2)
        (output,) = response.outputs
        assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [2, 4])
        assert list(response.raw_output_contents) == [b""]
        assert output.parameters["shared_memory_region"].string_param == memory.name
        assert output.parameters["shared_memory_byte_size"].int64_param == VALUES.nbytes
        assert output.parameters["shared_memory_offset"].int64_param == 1024

    everywhere(server, infer)


def test_shared_memory_is_used_for_some_tensors_and_the_message_for_others(ordinary: Caller, memory: Memory) -> None:
    given = outputs(ordinary("ModelInfer", memory.infer(wanted=None)))
    np.testing.assert_array_equal(given["y"], VALUES * 2)
    request = memory.infer(given=None)
    request.outputs.add(name="total")
    response = ordinary("ModelInfer", request)
    np.testing.assert_array_equal(memory.take(VALUES.nbytes, 1024).reshape(2, 4), VALUES * 2)
    assert [len(raw) for raw in response.raw_output_contents] == [0, 8], "contents match outputs by their order"


def test_large_tensors_and_ranked_labels_use_shared_memory(admin: Caller, ordinary: Caller) -> None:
    memory = Memory(admin, 1 << 22)
    values = np.random.default_rng(1).normal(size=(1, 3, 200_000)).astype(np.float32)
    request = infer_request("waves", values, "waveform")
    wanted = outputs(ordinary("ModelInfer", request))["probabilities"]
    del request.raw_input_contents[:]
    memory.put(values, 16)
    memory.place(request.inputs[0].parameters, values.nbytes, 16)
    np.testing.assert_array_equal(outputs(ordinary("ModelInfer", request))["probabilities"], wanted)
    output = request.outputs.add(name="probabilities")
    output.parameters["classification"].int64_param = 1
    memory.place(output.parameters, 100, 4_000_000)
    (told,) = ordinary("ModelInfer", request).outputs
    nbytes = told.parameters["shared_memory_byte_size"].int64_param
    text = bytes(memory.memory.buf[4_000_000 : 4_000_000 + nbytes])
    assert (told.datatype, list(told.shape)) == ("BYTES", [1, 1])
    assert int.from_bytes(text[:4], "little") == len(text) - 4
    assert text[4:].decode().split(":")[1] == str(int(wanted.argmax()))
    memory.end()


def test_requests_of_a_stream_use_shared_memory(ordinary: Caller, memory: Memory) -> None:
    good, bad = memory.infer(), memory.infer()
    bad.inputs[0].parameters["shared_memory_region"].string_param = "nobody"
    answers = list(stream(ordinary.channel, "ModelStreamInfer")(iter([good, bad, good]), timeout=SECONDS))
    assert [answer.error_message for answer in answers] == ["", "region 'nobody' is not registered", ""]
    np.testing.assert_array_equal(memory.take(VALUES.nbytes, 1024).reshape(2, 4), VALUES * 2)


def test_memory_that_is_cut_short_fails_its_requests_alone(server: Server, ordinary: Caller, memory: Memory) -> None:
    before = server.processes("frontend")
    request = memory.infer()
    memory.memory.close()
    os.truncate(memory.file, 16)
    words = f"region '{memory.name}' has become shorter than it was registered"
    for _ in range(3):
        assert ordinary.refusal("ModelInfer", request) == ("INVALID_ARGUMENT", "BAD_TENSOR", words)
    written = infer_request("doubler", VALUES)
    memory.place(written.outputs.add(name="y").parameters, VALUES.nbytes, 1024)
    assert ordinary.refusal("ModelInfer", written) == ("INVALID_ARGUMENT", "BAD_TENSOR", words)
    assert memory.file.stat().st_size == 16
    ordinary("ModelInfer", infer_request("doubler", VALUES))
    assert server.processes("frontend") == before


def test_region_of_one_byte_has_room_for_nothing(ordinary: Caller, memory: Memory) -> None:
    memory.unregister()
    memory.register(1, 4095)
    status, _, words = ordinary.refusal("ModelInfer", memory.infer(given=0, wanted=None))
    assert (status, words) == (
        "INVALID_ARGUMENT",
        f"input 'x' has 32 bytes at 0 of region '{memory.name}', which has 1",
    )
    request = memory.infer(given=None, wanted=None)
    memory.place(request.outputs[0].parameters, 1, 0)
    assert ordinary.refusal("ModelInfer", request)[2] == "output 'y' has 32 bytes, but 1 of shared memory"


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(2**63 - 1, 32), (0, 2**63 - 1), (-(2**63), 32), (4096, 32), (4065, 32)]
)
def test_place_outside_the_region_is_refused(ordinary: Caller, memory: Memory, offset: int, nbytes: int) -> None:
    request = memory.infer(given=None, wanted=None)
    memory.place(request.outputs[0].parameters, nbytes, offset)
    status, _, words = ordinary.refusal("ModelInfer", request)
    assert status == "INVALID_ARGUMENT"
    assert words == f"output 'y' has {nbytes} bytes at {offset} of region '{memory.name}', which has 4096"


def test_request_in_flight_keeps_a_region_that_is_unregistered(
    server: Server, ordinary: Caller, memory: Memory
) -> None:
    engine = server.children()["engine"]
    os.kill(engine, signal.SIGSTOP)
    try:
        answer = method(ordinary.channel, "ModelInfer").future(memory.infer(), timeout=SECONDS)
        assert server.wait_for_total("convoy_requests_in_flight", 1) == 1
        memory.unregister()
        status, why, words = ordinary.refusal("ModelInfer", memory.infer())
        assert (status, why) == ("NOT_FOUND", "UNKNOWN_REGION")
        assert words == f"region '{memory.name}' is not registered"
    finally:
        os.kill(engine, signal.SIGCONT)
    answer.result()
    np.testing.assert_array_equal(memory.take(VALUES.nbytes, 1024).reshape(2, 4), VALUES * 2)


def test_front_end_that_starts_later_knows_what_was_changed(server: Server, admin: Caller, memory: Memory) -> None:
    rate = Values(value=["17"])
    admin("TraceSetting", pb.TraceSettingRequest(settings={"trace_rate": rate}))
    before = len(server.log)
    killed = server.processes("frontend")
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    # The successor of the first may make the server ready before the last has died.
    ended = [server.wait_for_log(f"frontend {pid} ended with signal 9", after=before) for pid in killed]
    server.wait_for_log("ready", after=max(map(server.log.index, ended)))

    def infer(caller: Caller) -> None:
        caller("ModelInfer", memory.infer())

    everywhere(server, infer)
    caller = Caller(server.admin)
    with caller.channel:
        regions = caller("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()).regions
        assert list(regions) == [memory.name]
        told = caller("TraceSetting", pb.TraceSettingRequest())
        assert list(told.settings["trace_rate"].value) == ["17"]
        told = caller("TraceSetting", pb.TraceSettingRequest(settings={"trace_rate": Values()}))
        assert list(told.settings["trace_rate"].value) == ["1000"]


def test_status_lists_regions_as_they_were_registered(admin: Caller, memory: Memory) -> None:
    memory.unregister()
    memory.register(100, 50)
    for name in ("", memory.name):
        (region,) = admin("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name)).regions.values()
        assert (region.name, region.key) == (memory.name, f"/{memory.memory.name}")
        assert (region.offset, region.byte_size) == (50, 100)
    refusal = admin.refusal("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="nobody"))
    assert refusal == ("NOT_FOUND", "UNKNOWN_REGION", "region 'nobody' is not registered")
    again = pb.SystemSharedMemoryRegisterRequest(name=memory.name, key=memory.memory.name, byte_size=1)
    assert "is already registered" in admin.refusal("SystemSharedMemoryRegister", again)[2]
    admin("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest())
    assert not admin("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()).regions


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "/etc/passwd", "nobody", "..", "", "a/b", "x\0", "convoy-metrics-x", "/proc/self/mem"]
)
def test_key_of_nothing_is_refused_without_a_path(admin: Caller, key: str) -> None:
    request = pb.SystemSharedMemoryRegisterRequest(name="name", key=key, byte_size=1)
    status, why, words = admin.refusal("SystemSharedMemoryRegister", request)
    assert (status, why) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    assert "shm" not in words
    assert "No such file" not in words


def test_level_of_the_log_changes_in_every_process(server: Server, admin: Caller) -> None:
    def set_level(**settings: Any) -> Any:
        values = {name: pb.LogSettingsRequest.SettingValue(**value) for name, value in settings.items()}
        return admin("LogSettings", pb.LogSettingsRequest(settings=values)).settings

    before = len(server.log)
    assert set_level()["log_level"].string_param == "info"
    told = set_level(log_verbose_level={"uint32_param": 1})
    assert (told["log_level"].string_param, told["log_verbose_level"].uint32_param) == ("debug", 1)
    everywhere(server, lambda caller: caller.refusal("ModelInfer", infer_request("nobody", VALUES)) and None)
    admin("RepositoryModelUnload", Unload(model_name="letters"))
    admin("RepositoryModelLoad", Load(model_name="letters"))
    assert server.wait_for_log("model letters version 1 is being loaded", after=before)["process"] == "engine"
    assert server.wait_for_log("request refused", after=before)["level"] == "debug"
    assert set_level(log_level={"string_param": "info"})["log_verbose_level"].uint32_param == 0
    value = pb.LogSettingsRequest.SettingValue(string_param="/tmp/convoy-log")
    status, _, words = admin.refusal("LogSettings", pb.LogSettingsRequest(settings={"log_file": value}))
    assert (status, "setting 'log_file' is not accepted" in words) == ("INVALID_ARGUMENT", True)
    assert not Path("/tmp/convoy-log").exists()


def test_traced_requests_leave_their_times_in_the_log(server: Server, admin: Caller, ordinary: Caller) -> None:
    def set_traces(model: str = "", **values: list[str]) -> dict[str, list[str]]:
        settings = {name: Values(value=value) for name, value in values.items()}
        told = admin("TraceSetting", pb.TraceSettingRequest(model_name=model, settings=settings)).settings
        return {name: list(setting.value) for name, setting in told.items()}

    assert set_traces() == {"trace_level": ["OFF"], "trace_rate": ["1000"]}
    wanted = {"trace_level": ["TIMESTAMPS"], "trace_rate": ["1"]}
    assert set_traces("doubler", **wanted) == wanted
    assert set_traces("letters")["trace_level"] == ["OFF"]
    before = len(server.log)
    metadata = [("x-request-id", "traced-1")]
    method(ordinary.channel, "ModelInfer")(infer_request("doubler", VALUES[:1]), timeout=SECONDS, metadata=metadata)
    record = server.wait_for_log("request traced", after=before)
    assert (record["model"], record["method"], record["request_id"]) == ("doubler", "ModelInfer", "traced-1")
    assert 0 < record["run_seconds"] < record["total_seconds"]
    assert set_traces("doubler", trace_level=[], trace_rate=[]) == {"trace_level": ["OFF"], "trace_rate": ["1000"]}
    assert admin.refusal("TraceSetting", pb.TraceSettingRequest(model_name="nobody"))[0] == "NOT_FOUND"


@pytest.mark.parametrize("name", ADMIN)
def test_nothing_is_administered_on_the_grpc_port(ordinary: Caller, name: str) -> None:
    request = GetMessageClass(INFERENCE.methods_by_name[name].input_type)()
    status, why, words = ordinary.refusal(name, request)
    assert (status, why) == ("UNIMPLEMENTED", "NOT_OFFERED")
    assert "administration port" in words


def test_extensions_are_those_of_the_port(admin: Caller, ordinary: Caller) -> None:
    of_admin, of_ordinary = (
        set(caller("ServerMetadata", pb.ServerMetadataRequest()).extensions) for caller in (admin, ordinary)
    )
    only = {"model_repository", "model_repository(unload_dependents)", "logging", "trace", "system_shared_memory"}
    assert of_admin - of_ordinary == only
    assert of_ordinary >= {"classification", "schedule_policy"}


def test_request_in_flight_is_answered_when_its_model_is_unloaded(tmp_path: Path) -> None:
    networks.save(networks.doubler(), tmp_path, "doubler")
    with Server(tmp_path, [*SETTINGS, PATIENT, "admin.port=0", "engine.sleep_ms=[500, 0]"]) as server:
        admin, ordinary = Caller(server.admin), Caller(server.grpc)
        with admin.channel, ordinary.channel:
            unload = method(admin.channel, "RepositoryModelUnload")
            with standing(server):  # so that the request is still in flight when the model is unloaded
                answer = method(ordinary.channel, "ModelInfer").future(
                    infer_request("doubler", VALUES), timeout=SECONDS
                )
                assert server.wait_for_total("convoy_requests_in_flight", 1) == 1
                unloading = unload.future(Unload(model_name="doubler"), timeout=SECONDS)
                server.wait_for_log("change requested")
            unloading.result()
            assert ordinary.refusal("ModelInfer", infer_request("doubler", VALUES))[0] == "UNAVAILABLE"
            assert len(answer.result().outputs) == 2
            _wait_until(lambda: server.get(f"{server.http}/readyz")[0] == 503)  # no model serves
            # Off by default, also with an administration port.
            request = pb.SystemSharedMemoryRegisterRequest(name="name", key="key", byte_size=1)
            status, why, words = admin.refusal("SystemSharedMemoryRegister", request)
            assert (status, why, "admin.shared_memory" in words) == ("UNIMPLEMENTED", "NOT_OFFERED", True)
            assert admin("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()).ListFields() == []
            metadata = admin("ServerMetadata", pb.ServerMetadataRequest())
            assert "system_shared_memory" not in metadata.extensions


def listening(port: int) -> set[bool]:
    """Whether what listens on a port of this machine has the address 127.0.0.1, also as an address of IPv6."""
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = row.split()
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address in ("0100007F", "0000000000000000FFFF00000100007F"))
    return found


def test_port_is_on_the_loopback_address_wherever_the_server_listens(tmp_path: Path) -> None:
    networks.save(networks.doubler(), tmp_path, "doubler")
    with Server(tmp_path, [*SETTINGS, "admin.port=0", "server.host=0.0.0.0"]) as server:
        host, _, port = server.admin.partition(":")
        assert host == "127.0.0.1"
        assert listening(int(port)) == {True}
        assert listening(int(server.grpc.partition(":")[2])) == {False}, "another address would be seen"


def test_unix_socket_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    networks.save(networks.doubler(), tmp_path / "repository", "doubler")
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # a server that was killed leaves it behind
    settings = [*SETTINGS, f"admin.socket={path}", "server.frontends=2"]
    with Server(tmp_path / "repository", settings) as server:
        assert server.admin == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        admin = Caller(server.admin)
        with admin.channel:
            admin("RepositoryModelUnload", Unload(model_name="doubler"))
            assert admin.states() == {"doubler": "UNAVAILABLE unloaded on request"}
        with pytest.raises(AssertionError, match="where another process listens"):
            Server(tmp_path / "repository", settings)
        assert server.stop() == 0
    assert not path.exists()
    with Server(tmp_path / "repository", settings) as server:  # a restart forgets
        admin = Caller(server.admin)
        with admin.channel:
            assert admin.states() == {"doubler": "READY"}


def test_callers_with_names_need_the_scope_of_administration(tmp_path: Path) -> None:
    networks.save(networks.doubler(), tmp_path / "repository", "doubler")
    tokens = {name: f"convoy_{name}_{'x' * 40}" for name in ("all", "admin")}
    file = tmp_path / "callers.toml"
    lines = [line("all", tokens["all"], ["*"], ["metrics"], None), line("admin", tokens["admin"], [], ["admin"], None)]
    file.write_text("\n".join(lines))
    settings = [*SETTINGS, "admin.port=0", "admin.shared_memory=true", f"access.callers={file}"]
    with Server(tmp_path / "repository", settings) as server:
        nobody, everyone, manager = (Caller(server.admin, token) for token in ("", tokens["all"], tokens["admin"]))
        with nobody.channel, everyone.channel, manager.channel:
            for name in ADMIN:
                request = GetMessageClass(INFERENCE.methods_by_name[name].input_type)()
                assert nobody.refusal(name, request)[0] == "UNAUTHENTICATED"
                assert everyone.refusal(name, request)[0] == "PERMISSION_DENIED"
            everyone("ModelInfer", infer_request("doubler", VALUES))
            assert manager.refusal("ModelInfer", infer_request("doubler", VALUES))[0] == "PERMISSION_DENIED"
            manager("RepositoryModelUnload", Unload(model_name="doubler"))
            manager("RepositoryModelLoad", Load(model_name="doubler"))
            assert not manager("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()).regions


def test_port_is_encrypted_like_the_others(tmp_path: Path) -> None:
    networks.save(networks.doubler(), tmp_path / "repository", "doubler")
    authority = Authority(tmp_path)
    pair = authority.sign("server")
    settings = [*SETTINGS, "admin.port=0", f"tls.certificate={pair.certificate}", f"tls.key={pair.key}"]
    with Server(tmp_path / "repository", settings) as server:
        plain = Caller(server.admin)
        with plain.channel, pytest.raises(grpc.RpcError):
            plain("ServerLive", pb.ServerLiveRequest())
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        with grpc.secure_channel(server.admin, credentials) as channel:
            assert method(channel, "RepositoryModelLoad")(Load(model_name="doubler"), timeout=SECONDS) is not None


def test_models_are_loaded_and_unloaded_on_every_device(tmp_path: Path) -> None:
    networks.save(networks.doubler(), tmp_path, "doubler")
    networks.save(networks.classifier(), tmp_path, "letters")
    settings = [*SETTINGS, "admin.port=0", "engine.devices=[0, 1]", "engine.provider=cpu"]
    with Server(tmp_path, settings) as server:
        admin = Caller(server.admin)
        with admin.channel:
            admin("RepositoryModelUnload", Unload(model_name="doubler"))
            assert admin.states() == {"doubler": "UNAVAILABLE unloaded on request", "letters": "READY"}
            assert server.total("convoy_model_ready", model="doubler") == 0
            admin("RepositoryModelLoad", Load(model_name="doubler"))
            assert admin.states() == {"doubler": "READY", "letters": "READY"}
            assert server.total("convoy_model_ready", model="doubler") == 2


def test_errors_of_administration_contain_no_path(admin: Caller, ordinary: Caller, memory: Memory) -> None:
    wrong = memory.infer()
    wrong.inputs[0].parameters["shared_memory_byte_size"].int64_param = 7
    far = pb.SystemSharedMemoryRegisterRequest(name="name", key=memory.memory.name, offset=2**64 - 1, byte_size=1)
    texts = [ordinary.refusal("ModelInfer", wrong)[2], admin.refusal("SystemSharedMemoryRegister", far)[2]]
    for text in texts:
        assert not re.search(rf"/|{memory.memory.name}", text)
