"""Who is known, what each caller may do, and what the file of callers must contain."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from convoy.service import access
from convoy.service.access import Caller, Callers
from convoy.service.config import AccessConfig
from convoy.service.errors import BadConfig, NotPermitted, UnknownCaller
from convoy.service.followed import Followed

TOKEN = b"convoy_secret"
DIGEST = sha256(TOKEN).hexdigest()
OTHER = sha256(b"other").hexdigest()


def callers(folder: Path, text: str) -> Callers:
    file = folder / "callers.toml"
    file.write_text(text)
    followed = access.follow(AccessConfig(callers=str(file)))
    assert followed is not None
    return followed.value


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(BadConfig) as caught:
        callers(folder, text)
    assert "\n" not in caught.value.message
    return caught.value.message.partition("callers.toml' ")[2] or caught.value.message.partition("callers.toml': ")[2]


def poll(followed: Followed[Callers]) -> None:
    """Until a change is found: by the second look."""
    for _ in range(2):
        access.poll(followed)


def is_known(known: Callers, authorization: bytes | None, names: Sequence[str] = ()) -> bool:
    try:
        known.identify(authorization, names)
    except UnknownCaller:
        return False
    return True


def test_without_a_file_nobody_is_asked() -> None:
    assert access.follow(AccessConfig()) is None


def test_caller_is_known_by_its_token(tmp_path: Path) -> None:
    known = callers(tmp_path, f'ci = {{ sha256 = "{DIGEST}" }}\nanother = {{ sha256 = "{OTHER}" }}')
    assert known.identify(b"Bearer " + TOKEN, ()).name == "ci"
    assert known.identify(b"bearer  " + TOKEN + b" ", ()).name == "ci"


@pytest.mark.parametrize(
    "header",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Bearer " + TOKEN[:-1], b"Bearer " + TOKEN + b"x",
     TOKEN, b"Basic " + TOKEN, b"Bearer " + DIGEST.encode(), b"Bearer \xff\x00", b"Bearer " + bytes(100_000)],
)  # fmt: skip
def test_nothing_else_stands_for_a_token(tmp_path: Path, header: bytes | None) -> None:
    assert not is_known(callers(tmp_path, f'ci = {{ sha256 = "{DIGEST}" }}'), header)


def test_caller_is_known_by_a_name_in_its_certificate(tmp_path: Path) -> None:
    known = callers(tmp_path, f'"a.example" = {{ certificate = true }}\nci = {{ sha256 = "{DIGEST}" }}')
    assert known.identify(None, ["b.example", "a.example"]).name == "a.example"
    assert not is_known(known, None, ["b.example"])
    assert not is_known(known, None, ["ci"])  # which is the name of a token
    assert not is_known(known, b"Bearer wrong", ["a.example"])  # a token that is wrong stays wrong


def test_caller_is_unknown_once_it_has_expired(tmp_path: Path) -> None:
    for days, expected in ((-1, False), (1, True)):
        when = datetime.now(UTC) + timedelta(days=days)
        known = callers(tmp_path, f'ci = {{ sha256 = "{DIGEST}", expires = {when:%Y-%m-%dT%H:%M:%SZ} }}')
        assert is_known(known, b"Bearer " + TOKEN) == expected


def test_caller_may_call_its_models_and_no_others(tmp_path: Path) -> None:
    known = callers(
        tmp_path, f'ci = {{ sha256 = "{DIGEST}", models = ["a", "b"] }}\nall = {{ sha256 = "{OTHER}", models = ["*"] }}'
    )
    ci, everything = known.by_name["ci"], known.by_name["all"]
    assert [ci.sees(model) for model in ("a", "b", "c", "*", "")] == [True, True, False, False, False]
    assert all(everything.sees(model) for model in ("a", "c"))
    ci.permit("a")
    with pytest.raises(NotPermitted):
        ci.permit("c")


def test_caller_without_models_and_scopes_may_do_nothing(tmp_path: Path) -> None:
    caller = callers(tmp_path, f'ci = {{ sha256 = "{DIGEST}" }}').by_name["ci"]
    assert not caller.sees("a")
    for scope in ("metrics", "admin"):
        with pytest.raises(NotPermitted):
            caller.need(scope)  # type: ignore[arg-type]


def test_refusals_say_the_same_whatever_is_wrong(tmp_path: Path) -> None:
    known = callers(tmp_path, f'ci = {{ sha256 = "{DIGEST}", models = ["a"], expires = 2020-01-01T00:00:00Z }}\n')
    messages = set()
    for header in (None, b"Bearer wrong", b"Bearer " + TOKEN):
        with pytest.raises(UnknownCaller) as caught:
            known.identify(header, ())
        messages.add(caught.value.message)
    assert len(messages) == 1


def test_changed_file_ends_those_that_it_no_longer_has(tmp_path: Path) -> None:
    third = sha256(b"third").hexdigest()
    before = callers(
        tmp_path,
        f'stays = {{ sha256 = "{DIGEST}" }}\ngoes = {{ sha256 = "{OTHER}" }}\nchanges = {{ sha256 = "{third}" }}',
    )
    stays, goes, changes = before.by_name.values()
    after = callers(tmp_path, f'stays = {{ sha256 = "{DIGEST}" }}\nchanges = {{ sha256 = "{third}", models = ["*"] }}')
    after.replace(before)
    assert after.identify(b"Bearer " + TOKEN, ()) is stays
    stays.check()
    for caller in (goes, changes):
        with pytest.raises(UnknownCaller):
            caller.check()
    assert not is_known(after, b"Bearer other")
    assert after.identify(b"Bearer third", ()).sees("a")


def test_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    file.write_text(f'ci = {{ sha256 = "{DIGEST}" }}')
    followed = access.follow(AccessConfig(callers=str(file)))
    assert followed is not None
    caller = followed.value.identify(b"Bearer " + TOKEN, ())
    file.write_text("broken")
    poll(followed)
    assert followed.failed
    caller.check()
    file.write_text("")
    poll(followed)
    with pytest.raises(UnknownCaller):
        caller.check()
    assert not is_known(followed.value, b"Bearer " + TOKEN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("broken", "is not TOML: "),
        ("ci = 5", "caller 'ci': Expected object, got int"),
        ("ci = {}", "caller 'ci' has neither sha256 nor certificate = true, want one"),
        ('ci = { sha256 = "abc" }', "caller 'ci': Expected str matching regex"),
        (f'ci = {{ sha256 = "{DIGEST.upper()}" }}', "caller 'ci': Expected str matching regex"),
        ('ci = { token = "abc" }', "caller 'ci': Object contains unknown field token"),
        ('ci = { certificate = true, models = ["A b"] }', "caller 'ci': Expected str matching regex"),
        ('ci = { certificate = true, scopes = ["root"] }', "caller 'ci': Invalid enum value 'root'"),
        (
            "ci = { certificate = true, expires = 2030-01-01T00:00:00 }",
            "caller 'ci': Expected datetime",
        ),
        ('"" = { certificate = true }', "name '', want 1 to 256 printable characters"),
        ('"a\\nb" = { certificate = true }', "name 'a\\nb', want 1 to 256 printable characters"),
        (f'a = {{ sha256 = "{DIGEST}" }}\nb = {{ sha256 = "{DIGEST}" }}', "callers 'a' and 'b' have the same token"),
        ("a = { certificate = true }\na = { certificate = true }", "is not TOML: "),
        ("\0", "line 1 has a NUL character"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    assert refusal(tmp_path, text).startswith(words)


def test_file_that_is_not_there_is_named() -> None:
    with pytest.raises(BadConfig, match=r"^access\.callers '/nowhere': No such file or directory$"):
        access.follow(AccessConfig(callers="/nowhere"))


def test_caller_of_a_test_is_what_it_seems() -> None:
    caller = Caller("name", access.Entry(sha256=DIGEST, models=("*",), scopes=("metrics",)))
    assert caller.digest == sha256(TOKEN).digest()
    caller.need("metrics")
