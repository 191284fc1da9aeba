"""R15 in short: texts of errors keep what they should, and each wrong request has its status."""

import pytest

from tests.reliability import leaks, r15_errors, status_cases
from tests.reliability.test_r01 import SEEDS
from tests.service.running import skip_without


@pytest.mark.parametrize("transport_", SEEDS)
def test_each_request_of_the_table_has_its_status(transport_: str) -> None:
    skip_without(transport_)
    cases = list(status_cases.cases())
    assert len(cases) >= 300
    assert len({case.name for case in cases}) == len(cases)
    tally = r15_errors.CASES.run(len(cases), SEEDS[transport_])
    assert tally.failed == 0, "\n".join(tally.examples)


def test_another_status_is_found() -> None:
    assert r15_errors.CASES.control(0).failed == 1


def test_sizes_that_wrap_are_refused_at_once() -> None:
    found = r15_errors.sizes()
    assert len(found) == 7**3
    assert [shape for shape, how, _ in found if how == "read"] == [(1, 1, 1)]
    assert max(seconds for *_, seconds in found) < 0.005


@pytest.mark.parametrize("text", r15_errors.SECRETS)
def test_secret_in_a_text_is_found(text: str) -> None:
    assert leaks.found(text)


@pytest.mark.parametrize(
    "text",
    [
        "image is 0x65535 pixels, want 1 to 65535 a side",
        "image starts with the bytes 68 65 6c 6c 6f 2c 20 77, want JPEG or PNG",
        "request is not a grpc.health.v1.HealthCheckRequest message",
        "input 'x' has shape [1, 2], want [-1, 4]",
        "put a file at MODEL/VERSION/model.onnx in the server's repository, which is watched",
        "caller is unknown: want 'authorization: Bearer TOKEN' with a valid token, or the certificate of a caller",
        "grpc-timeout is '1.5S', want 1 to 8 digits and one of H M S m u n",
    ],
)
def test_text_without_a_secret_is_left_alone(text: str) -> None:
    assert not leaks.found(text)


def test_what_the_caller_has_sent_itself_is_no_secret() -> None:
    text = "model '/etc/passwd' is unknown: the server has letters"
    assert leaks.found(text)
    assert not leaks.found(text, sent="/etc/passwd")
