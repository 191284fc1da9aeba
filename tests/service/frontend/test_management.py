"""What the administration port makes of a request, before anything is changed."""

import asyncio
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from convoy.service.access import Caller, Entry
from convoy.service.errors import BadRequest, ModelUnavailable, UnknownModel
from convoy.service.frontend import management
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.changes import Orders
from convoy.service.frontend.management import Management
from convoy.service.frontend.tracing import Traces
from convoy.service.ipc import messages
from convoy.service.ipc.messages import Tracing
from convoy.service.pb import inference_pb2 as pb

Setting = pb.LogSettingsRequest.SettingValue
Values = pb.TraceSettingRequest.SettingValue
CALL: Any = SimpleNamespace(method="RepositoryModelLoad", caller=Caller("ci", Entry(scopes=("admin",))))


class Supervisor:
    """Makes every change at once, or refuses it."""

    def __init__(self) -> None:
        self.changes: list[messages.Change] = []
        self.refusal: messages.Refusal | None = None
        self.orders = Orders(self._receive)

    def _receive(self, message: messages.Message, descriptors: object) -> None:
        assert isinstance(message, messages.Ask)
        self.changes.append(message.change)
        outcome = messages.Outcome(message.number, self.refusal)
        asyncio.get_running_loop().call_soon(self.orders.end, outcome)


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def port(supervisor: Supervisor) -> Management:
    return Management(Catalogue(lambda *_: None), supervisor.orders, Traces(), None)


@pytest.mark.parametrize("model", ["", "..", "../letters", "Letters", "letters/1", "a" * 65, "letters\n", "ｌetters"])
def test_name_of_no_folder_reaches_nobody(port: Management, supervisor: Supervisor, model: str) -> None:
    for request, method in [
        (pb.RepositoryModelLoadRequest(model_name=model), port.RepositoryModelLoad),
        (pb.RepositoryModelUnloadRequest(model_name=model), port.RepositoryModelUnload),
    ]:
        with pytest.raises(UnknownModel, match="is not in the repository"):
            asyncio.run(method(request, CALL))  # type: ignore[operator]
    assert supervisor.changes == []


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx", "file:../../x", "unload_dependents"])
def test_overrides_of_a_load_are_refused_by_name(port: Management, supervisor: Supervisor, name: str) -> None:
    request = pb.RepositoryModelLoadRequest(model_name="letters")
    request.parameters[name].string_param = "{}"
    with pytest.raises(BadRequest, match=f"parameter '{name}' is not accepted: models come only from"):
        asyncio.run(port.RepositoryModelLoad(request, CALL))
    assert supervisor.changes == []


def test_dependents_are_accepted_and_other_parameters_of_an_unload_are_not(
    port: Management, supervisor: Supervisor
) -> None:
    request = pb.RepositoryModelUnloadRequest(model_name="letters")
    request.parameters["unload_dependents"].bool_param = True
    asyncio.run(port.RepositoryModelUnload(request, CALL))
    assert supervisor.changes == [messages.Unload("letters")]
    request.parameters["force"].bool_param = True
    with pytest.raises(BadRequest, match="parameter 'force' is unknown"):
        asyncio.run(port.RepositoryModelUnload(request, CALL))


def test_who_asks_for_a_change_is_in_the_log(port: Management, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asyncio.run(port.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="letters"), CALL))
    (record,) = [record for record in caplog.records if record.getMessage() == "change requested"]
    assert record.__dict__["fields"] == {"method": "RepositoryModelLoad", "caller": "ci"}


def test_other_repository_is_refused(port: Management) -> None:
    request = pb.RepositoryModelLoadRequest(model_name="letters", repository_name="/srv")
    with pytest.raises(BadRequest, match="there is one repository"):
        asyncio.run(port.RepositoryModelLoad(request, CALL))


def test_refusal_of_the_supervisor_reaches_the_caller(port: Management, supervisor: Supervisor) -> None:
    supervisor.refusal = messages.refusal_of(ModelUnavailable("version 2 is not loaded: no ONNX file"))
    with pytest.raises(ModelUnavailable, match="version 2 is not loaded"):
        asyncio.run(port.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="letters"), CALL))


def test_supervisor_that_does_not_read_is_an_error_for_now() -> None:
    def full(*_: object) -> None:
        raise BlockingIOError

    with pytest.raises(ModelUnavailable, match="does not answer"):
        asyncio.run(Orders(full).make(messages.Forget("")))


def test_outcome_of_a_caller_that_has_left_is_dropped(supervisor: Supervisor) -> None:
    async def leave() -> None:
        waiting = asyncio.ensure_future(supervisor.orders.make(messages.Forget("")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        supervisor.orders.end(messages.Outcome(1))

    asyncio.run(leave())
    assert len(supervisor.changes) == 1


@pytest.mark.parametrize(
    ("before", "settings", "after"),
    [
        ("info", {"log_verbose_level": Setting(uint32_param=1)}, "debug"),
        ("info", {"log_verbose_level": Setting(uint32_param=0)}, "info"),
        ("debug", {"log_verbose_level": Setting(uint32_param=0)}, "info"),
        ("info", {"log_info": Setting(bool_param=False)}, "warning"),
        ("info", {"log_info": Setting(bool_param=False), "log_warning": Setting(bool_param=False)}, "error"),
        ("error", {"log_warning": Setting(bool_param=True)}, "warning"),
        ("error", {"log_info": Setting(bool_param=True)}, "info"),
        ("error", {"log_error": Setting(bool_param=True)}, "error"),
        ("info", {"log_level": Setting(string_param="warning")}, "warning"),
        ("error", {"log_level": Setting(string_param="debug")}, "debug"),
    ],
)
def test_lowest_level_that_is_on_is_that_of_the_log(before: Any, settings: Mapping[str, Any], after: str) -> None:
    assert management._level(before, settings) == after


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"log_file": Setting(string_param="/tmp/x")}, "setting 'log_file' is not accepted"),
        ({"log_file": Setting()}, "setting 'log_file' is not accepted"),
        ({"log_format": Setting(string_param="ISO8601")}, "setting 'log_format' is not accepted"),
        ({"log_level": Setting(string_param="loud\n")}, "log_level is 'loud.*, want debug, info, warning, error"),
        ({"log_level": Setting(uint32_param=1)}, "log_level is '', want debug"),
        ({"log_level": Setting(string_param="info"), "log_info": Setting(bool_param=True)}, "want it alone"),
        ({"log_verbose_level": Setting(bool_param=True)}, "log_verbose_level has bool_param, want uint32_param"),
        ({"log_info": Setting()}, "log_info has no value, want bool_param"),
        ({"log_error": Setting(bool_param=False)}, "log_error is false: errors are always logged"),
    ],
)
def test_other_settings_of_the_log_are_refused(settings: Mapping[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        management._level("info", settings)


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({"trace_level": Values(value=["TIMESTAMPS"])}, Tracing("m", on=True, rate=7)),
        ({"trace_level": Values(value=["OFF"])}, Tracing("m", on=False, rate=7)),
        ({"trace_level": Values(), "trace_rate": Values(value=["100"])}, Tracing("m", rate=100)),
        ({"trace_rate": Values()}, Tracing("m", on=True)),
        ({"trace_file": Values(), "trace_count": Values()}, Tracing("m", on=True, rate=7)),
    ],
)
def test_settings_of_traces_replace_those_before(settings: Mapping[str, Any], after: Tracing) -> None:
    assert management._tracing(Tracing("m", on=True, rate=7), settings) == after


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"trace_file": Values(value=["/tmp/x"])},
            "'trace_file' is not accepted, want trace_level, trace_rate",
        ),
        ({"trace_mode": Values(value=["opentelemetry"])}, "setting 'trace_mode' is not accepted"),
        ({"trace_level": Values(value=["TENSORS"])}, "trace_level is 'TENSORS', want 'OFF' or 'TIMESTAMPS'"),
        ({"trace_level": Values(value=["OFF", "TIMESTAMPS"])}, "trace_level is 'OFF', 'TIMESTAMPS', want"),
        *(
            ({"trace_rate": Values(value=value)}, "trace_rate is .*, want one whole number, 1 to 1000000000")
            for value in (["0"], ["-1"], ["1.5"], ["²"], ["9" * 20], ["1", "2"], [""])
        ),
    ],
)
def test_other_settings_of_traces_are_refused(settings: Mapping[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        management._tracing(Tracing("m"), settings)
