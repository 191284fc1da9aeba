"""Where settings come from, which wins, and how a wrong one is told."""

import json
import re
from pathlib import Path

import pytest

from convoy.service.config import BatchingConfig, Config, ModelConfig, ServerConfig, keys, load, load_model_config, read
from convoy.service.errors import BadConfig


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "convoy.toml"
    written.write_text("[server]\ngrpc_port = 1111\nhttp_port = 2222\nmetrics_port = 3333\nlame_duck_seconds = 2\n")
    return written


def refusal(*settings: str, file: Path | None = None) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(BadConfig) as refused:
        load(file, settings)
    assert "\n" not in refused.value.message
    return refused.value.message


def test_nothing_said_is_the_defaults() -> None:
    assert load() == Config()
    assert load().server == ServerConfig(host="127.0.0.1", grpc_port=8001, http_port=8000, metrics_port=8002)


def test_file_is_read(file: Path) -> None:
    server = load(file).server
    assert (server.grpc_port, server.http_port, server.metrics_port) == (1111, 2222, 3333)
    assert server.lame_duck_seconds == 2.0  # a whole number is a number of seconds too
    assert server.host == "127.0.0.1"


def test_setting_wins_over_the_file_and_option_over_both(file: Path) -> None:
    settings = ["server.http_port=5", "server.metrics_port=6", "server.metrics_port=7"]
    server = load(file, settings, {"server.metrics_port": 8}).server
    assert (server.grpc_port, server.http_port, server.metrics_port) == (1111, 5, 8)
    assert load(file, settings).server.metrics_port == 7  # the last one counts


def test_file_is_left_as_it_was(file: Path) -> None:
    before = file.read_text()
    load(file, ["server.http_port=5"])
    assert file.read_text() == before
    assert load(file).server.http_port == 2222


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("server.host=0.0.0.0", "0.0.0.0"),
        ("server.host='::1'", "::1"),
        ('server.host="127.0.0.2"', "127.0.0.2"),
        (" server.host = localhost ", "localhost"),
        ("server.host=a=b", "a=b"),
    ],
)
def test_text_needs_no_quotes(setting: str, value: str) -> None:
    assert load(None, [setting]).server.host == value


def test_numbers_are_read_as_numbers() -> None:
    config = load(None, ["batching.max_batch_size=8", "batching.max_queue_delay_ms=0.5", "engine.provider=cpu"])
    assert (config.batching.max_batch_size, config.batching.max_queue_delay_ms) == (8, 0.5)
    assert config.engine.provider == "cpu"


def test_buckets_are_words_or_sizes() -> None:
    assert load().batching.buckets == "none"
    assert load(None, ["batching.buckets=auto"]).batching.buckets == "auto"
    assert load(None, ["batching.buckets=[[256, 512], [64, 64]]"]).batching.buckets == ((256, 512), (64, 64))
    assert load_model_config("buckets = [[256, 512]]\n") == ModelConfig(buckets=((256, 512),))
    assert load_model_config("buckets = 'none'\n").buckets == "none"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("server.port=1", ["unknown key server.port"]),
        ("serve.grpc_port=1", ["unknown key serve"]),
        ("server.grpc_port=65536", ["server.grpc_port", "65535"]),
        ("server.grpc_port=-1", ["server.grpc_port", "0"]),
        ("server.grpc_port=many", ["server.grpc_port is 'many', want int"]),
        ("server.grpc_port=1.5", ["server.grpc_port is 1.5, want int"]),
        ("server.grpc_port=true", ["server.grpc_port is True, want int"]),
        ("server.host=5", ["server.host", "str"]),
        ("server.frontends=0", ["server.frontends", "1"]),
        ("server.frontends=many", ["server.frontends is 'many', want 'auto' or a number"]),
        ("server.log_level=loud", ["server.log_level is 'loud', want 'debug' or 'error' or 'info' or 'warning'"]),
        ("server.grace_seconds=nan", ["server.grace_seconds"]),
        ("server.grace_seconds=inf", ["server.grace_seconds", "3600"]),
        ("limits.max_pixels=0", ["limits.max_pixels", "1"]),
        ("limits.max_message_bytes=2147483648", ["limits.max_message_bytes", "2147483647"]),
        ("limits.inflight_bytes=1000", ["limits.inflight_bytes is 1000", "limits.max_message_bytes, 67108864"]),
        ("limits.slot_bytes=1024", ["limits.slot_bytes", "1048576"]),
        (f"limits.slot_bytes={2**46 + 1}", ["limits.slot_bytes", str(2**46)]),
        (f"limits.slot_bytes={2**63}", ["limits.slot_bytes", str(2**46)]),  # beyond what the operating system counts to
        ("batching.max_batch_size=0", ["batching.max_batch_size is 0, want int >= 1"]),
        ("batching.max_batch_size=1025", ["batching.max_batch_size", "1024"]),
        ("batching.max_queue_delay_ms=-0.1", ["batching.max_queue_delay_ms", "0"]),
        ("batching.buckets=maybe", ["batching.buckets is 'maybe', want 'auto' or 'none' or a list"]),
        ("batching.buckets=[]", ["batching.buckets", "1"]),
        ("batching.buckets=[512]", ["batching.buckets[0] is 512, want a list"]),
        ("batching.buckets=[[512]]", ["batching.buckets[0] is [512], want a list of length 2"]),
        ("engine.sleep_ms=5", ["engine.sleep_ms is 5, want a list"]),
        ("batching.buckets=[[512, 0]]", ["batching.buckets", "1"]),
        ("engine.provider=gpu", ["engine.provider", "gpu"]),
        ("repository.poll_seconds=0", ["repository.poll_seconds", "0"]),
        ("server.tls.key=x", ["unknown key server.tls"]),
        ("server.grpc_port", ["'server.grpc_port' has no value", "section.key=value such as batching."]),
        ("grpc_port=1", ["'grpc_port' names no section and key", "section.key=value such as batching."]),
        ("=1", ["section.key"]),
        ("server.=1", ["'server.'"]),
        (".grpc_port=1", ["'.grpc_port'"]),
        ("server.a\nb=1", ["unknown key server.a"]),
        ("", ["section.key=value"]),
        ('access.public=["health", "readyz"]', ["access.public[1] is 'readyz', want ", "'probes'"]),
        ("server.\udcff=1", [r"setting 'server.\udcff=1' is not UTF-8"]),
        ("tls.key=\udcff", [r"setting 'tls.key=\udcff' is not UTF-8"]),
    ],
)
def test_wrong_setting_is_named_in_one_line(setting: str, words: list[str]) -> None:
    message = refusal(setting)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1\n", ["unknown key server.prot"]),
        ("[sever]\n", ["unknown key sever"]),
        ("port = 1\n", ["unknown key port"]),
        ("server = 5\n", ["server", "object"]),
        ("[server]\ngrpc_port = '1'\n", ["server.grpc_port"]),
        ("[server\n", ["not TOML", "line 1"]),
        ("[server]\na = 1\na = 2\n", ["not TOML"]),
        ("[server]\n'a\tb' = 1\n", ["unknown key server"]),
        ('"x\\ny" = 1\n', ["unknown key x"]),
    ],
)
def test_wrong_file_is_told_in_one_line(file: Path, text: str, words: list[str]) -> None:
    file.write_text(text)
    message = refusal(file=file)
    for word in words:
        assert word in message


@pytest.mark.parametrize(("one", "other"), [("grpc", "http"), ("grpc", "metrics"), ("http", "metrics")])
def test_two_ports_that_are_the_same_are_both_named(one: str, other: str) -> None:
    message = refusal(f"server.{one}_port=7000", f"server.{other}_port=7000")
    assert message.endswith(f"server.{one}_port and server.{other}_port are both 7000, want different ports")


def test_administration_is_off_unless_it_is_asked_for_and_shared_memory_comes_with_it() -> None:
    admin = load().admin
    assert (admin.enabled, admin.shared_memory, admin.socket) == (False, False, "")
    assert load(settings=["admin.enabled=true", "admin.shared_memory=true"]).admin.shared_memory
    with pytest.raises(BadConfig, match=r"admin\.shared_memory is set, but admin\.enabled is not"):
        load(settings=["admin.shared_memory=true"])


@pytest.mark.parametrize("name", ["grpc", "http", "metrics"])
def test_port_of_administration_is_its_own(name: str) -> None:
    """Front ends would otherwise listen twice on one, and callers reach either at random."""
    port = [f"server.{name}_port=9000", "admin.port=9000"]
    with pytest.raises(BadConfig, match=rf"admin\.port and server\.{name}_port are both 9000, want different ports"):
        load(settings=[*port, "admin.enabled=true"])
    load(settings=port)
    load(settings=[*port, "admin.enabled=true", "admin.socket=/run/admin.sock"])


def test_administration_has_no_address_but_that_of_the_machine_itself() -> None:
    with pytest.raises(BadConfig, match=r"unknown key admin\.host"):
        load(settings=["admin.host=0.0.0.0"])


def test_all_ports_may_be_free_ones() -> None:
    server = load(None, [f"server.{name}_port=0" for name in ("grpc", "http", "metrics")]).server
    assert (server.grpc_port, server.http_port, server.metrics_port) == (0, 0, 0)


def test_section_that_is_no_section_takes_no_settings(file: Path) -> None:
    file.write_text("server = 5\n")
    assert "'server' is not a section" in refusal("server.host=a", file=file)


def test_missing_file_is_named(tmp_path: Path) -> None:
    message = refusal(file=tmp_path / "nowhere.toml")
    assert "nowhere.toml" in message
    assert "No such file" in message


def test_file_that_is_no_text_is_named(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    assert "configuration file" in refusal(file=file)
    assert "line 1 ends within a character, want whole UTF-16 text" in refusal(file=file)
    file.write_bytes("[server]\n# café\n".encode("latin-1"))
    assert "line 2 is not UTF-8 (byte 0xe9), want the file saved as UTF-8" in refusal(file=file)
    assert "Is a directory" in refusal(file=file.parent)


def test_wrong_option_is_told_as_a_setting_is() -> None:
    with pytest.raises(BadConfig, match=r"server\.grpc_port"):
        load(None, [], {"server.grpc_port": 70_000})


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load().server.host = "elsewhere"  # type: ignore[misc]


def test_model_says_only_what_it_does_differently() -> None:
    assert load_model_config("") == ModelConfig()
    assert load_model_config("max_queue = 5\nmax_queue_delay_ms = 0\n") == ModelConfig(
        max_queue=5, max_queue_delay_ms=0.0
    )


@pytest.mark.parametrize(
    ("text", "why"), [("max_queue = 0", "max_queue"), ("queue = 1", "unknown key queue"), ("max_queue", "not TOML")]
)
def test_wrong_settings_of_a_model_are_named(text: str, why: str) -> None:
    with pytest.raises(BadConfig, match=why):
        load_model_config(text)


def test_model_may_set_nothing_that_the_server_may_not() -> None:
    defaults = BatchingConfig()
    for name in ("max_batch_size", "max_queue_delay_ms", "max_queue"):
        for value in (-1, 10**9):
            with pytest.raises(BadConfig):
                load_model_config(f"{name} = {value}")
            with pytest.raises(BadConfig):
                load(None, [f"batching.{name}={value}"])
        assert load_model_config(f"{name} = {getattr(defaults, name)}")


@pytest.mark.parametrize(("cores", "front_ends"), [(1, 1), (2, 1), (4, 1), (7, 1), (8, 2), (16, 4), (192, 8)])
def test_front_ends_follow_the_cores_where_they_are_left_to_it(cores: int, front_ends: int) -> None:
    assert load(None, ["server.frontends=auto"]).server.front_ends(cores) == front_ends
    assert load(None, ["server.frontends=3"]).server.front_ends(cores) == 3


def test_bytes_in_flight_fit_the_memory_the_slots_and_the_largest_message() -> None:
    gib = 1 << 30
    limits = load().limits
    assert limits.bytes_in_flight(16 * gib, 1) == limits.slot_bytes
    assert limits.bytes_in_flight(1 * gib, 1) == gib // 4
    assert limits.bytes_in_flight(1 * gib, 2) == gib // 8
    assert limits.bytes_in_flight(gib // 16, 1) == limits.max_message_bytes
    assert load(None, ["limits.inflight_bytes=100000000"]).limits.bytes_in_flight(gib, 1) == 100_000_000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["engine.provider=cpu", "engine.cuda_graphs=true"], "engine.gpu_memory_mib, cuda_graphs and tensorrt need"),
        (["engine.provider=cpu", "engine.tensorrt=fp16"], "need a GPU, but engine.provider is 'cpu'"),
        (["engine.cuda_graphs=true", "engine.tensorrt=fp32"], "engine.cuda_graphs and engine.tensorrt exclude"),
        (["engine.tensorrt_cache=/var/cache"], "engine.tensorrt_cache is set, but engine.tensorrt is 'off'"),
        (["engine.instances=0"], "engine.instances"),
        (["engine.instances=many"], "engine.instances"),
    ],
)  # fmt: skip
def test_engine_settings_that_do_not_go_together_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(BadConfig, match=re.escape(words)):
        load(None, settings)


def test_instances_are_a_number_or_auto() -> None:
    assert load(None, ["engine.instances=3"]).engine.instances == 3
    assert load(None, ["engine.instances=auto"]).engine.instances == "auto"
    assert load_model_config('instances = "auto"').instances == "auto"


def test_devices_are_a_list_or_auto_or_the_one_device() -> None:
    def numbers(*settings: str, cuda: int = 0) -> tuple[int, ...]:
        return load(None, settings).engine.device_numbers(lambda: cuda)

    assert numbers() == (0,)
    assert numbers("engine.device=3") == (3,)
    assert numbers("engine.devices=[2, 5]", cuda=1) == (2, 5)
    assert numbers("engine.devices=auto", cuda=3) == (0, 1, 2)
    assert numbers("engine.devices=auto") == (0,)
    assert numbers("engine.devices=auto", "engine.provider=cpu", cuda=3) == (0,)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["engine.devices=[0, 0]"], "engine.devices are [0, 0], want each of them once"),
        (["engine.devices=[0, 1]", "engine.device=1"], "engine.device and engine.devices are both set"),
        (["engine.devices=auto", "engine.device=1"], "engine.device and engine.devices are both set"),
        (["engine.devices=[-1]"], "engine.devices"),
        (["engine.devices=all"], "engine.devices"),
    ],
)
def test_devices_that_cannot_be_are_refused(settings: list[str], words: str) -> None:
    assert words in refusal(*settings)


def test_engines_of_several_devices_share_the_threads() -> None:
    engine = load(None, ["engine.devices=[0, 1, 2]"]).engine
    assert (engine.of_device(2, 3, cores=8).device, engine.of_device(2, 3, cores=8).threads) == (2, 2)
    assert engine.of_device(0, 3, cores=2).threads == 1
    assert load(None, ["engine.threads=6"]).engine.of_device(1, 3, cores=2).threads == 2
    assert load().engine.of_device(0, 1, cores=8) == load().engine  # of one nothing changes


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_file_is_read_as_editors_save_it(file: Path, encoding: str) -> None:
    file.write_bytes("# größer\r\n[server]\r\ngrpc_port = 9001\r\n".encode(encoding))
    assert load(file=file).server.grpc_port == 9001


def test_variables_are_settings(file: Path) -> None:
    environment = {
        "CONVOY_SERVER__HOST": "0.0.0.0",
        "CONVOY_BATCHING__BUCKETS": "[[64, 64]]",
        "CONVOY_ENGINE__PROVIDER": "cpu",
        "CONVOY_SERVER__HTTP_PORT": " 5 ",
    }
    config = load(file, environment=environment)
    assert (config.server.host, config.server.http_port, config.server.grpc_port) == ("0.0.0.0", 5, 1111)
    assert (config.batching.buckets, config.engine.provider) == (((64, 64),), "cpu")


def test_variable_wins_over_the_file_and_setting_and_option_over_it(file: Path) -> None:
    environment = {f"CONVOY_SERVER__{name}_PORT": "5" for name in ("HTTP", "METRICS", "GRPC")}
    reading = read(file, ["server.http_port=6"], {"server.metrics_port": 7}, environment)
    server = reading.config.server
    assert (server.grpc_port, server.http_port, server.metrics_port) == (5, 6, 7)
    assert reading.origins == {
        "server.grpc_port": "CONVOY_SERVER__GRPC_PORT",
        "server.http_port": "--set",
        "server.metrics_port": "--metrics-port",
        "server.lame_duck_seconds": str(file),
    }


@pytest.mark.parametrize("key", keys())
def test_every_setting_has_a_variable(key: str) -> None:
    section, name = key.split(".")
    value = getattr(getattr(Config(), section), name)
    text = json.dumps(value) if not isinstance(value, str) else value
    if value is not None:
        assert load(environment={f"CONVOY_{section.upper()}__{name.upper()}": text}) == Config()


def test_variable_for_a_secret_path_is_text_and_not_a_number() -> None:
    assert load(environment={"CONVOY_ADMIN__SOCKET": "'5'"}).admin.socket == "5"


@pytest.mark.parametrize(
    "name",
    [
        "CONVOY_TRACEBACK",
        "CONVOY_TOKEN_FILE",
        "CONVOY_PORT",
        "CONVOY_SERVICE_HOST",
        "CONVOY_PORT_8001_TCP_ADDR",
        "CONVOY_SERVICE_PORT_GRPC",
        "CONVOY_A__B_SERVICE_HOST",
        "CONVOY_A__B_PORT_8001_TCP",
        "CONVOY_A__B_PORT",
        "MY_CONVOY_SERVER__PROT",
        "convoy_server__prot",
    ],
)
def test_other_variables_do_not_disturb(name: str) -> None:
    assert load(environment={name: "tcp://10.0.0.7:8001"}) == Config()


def test_empty_variable_sets_nothing(file: Path) -> None:
    assert load(file, environment={"CONVOY_SERVER__GRPC_PORT": "", "CONVOY_SERVER__HOST": " "}) == load(file)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "CONVOY_SERVER__GRPC_PRT",
            "1",
            "CONVOY_SERVER__GRPC_PRT is no setting; did you mean CONVOY_SERVER__GRPC_PORT?",
        ),
        ("CONVOY_SERVE__GRPC_PORT", "1", "did you mean CONVOY_SERVER__GRPC_PORT?"),
        ("CONVOY_SERVER__SERVICE_PORT", "1", "CONVOY_SERVER__SERVICE_PORT is no setting"),
        ("CONVOY_X__Y", "1", "CONVOY_X__Y is no setting; 'convoy config' lists all settings"),
        (
            "CONVOY_SERVER__GRPC_PORT",
            "many",
            "configuration: server.grpc_port is 'many', want int; set by CONVOY_SERVER__GRPC_PORT",
        ),
        (
            "CONVOY_SERVER__GRPC_PORT",
            "8000",
            "server.http_port are both 8000, want different ports; set by CONVOY_SERVER",
        ),
        (
            "CONVOY_BATCHING__BUCKETS",
            "[512]",
            "batching.buckets[0] is 512, want a list; set by CONVOY_BATCHING__BUCKETS",
        ),
        ("CONVOY_SERVER__HOST", "\udcff", "CONVOY_SERVER__HOST is '\\udcff', which is not UTF-8"),
    ],
)
def test_wrong_variable_is_named_in_one_line(name: str, text: str, message: str) -> None:
    with pytest.raises(BadConfig) as refused:
        load(environment={name: text})
    assert message in refused.value.message
    assert "\n" not in refused.value.message


def test_variable_that_another_setting_overrides_is_not_blamed() -> None:
    with pytest.raises(BadConfig) as refused:
        load(None, ["server.grpc_port=many"], environment={"CONVOY_SERVER__GRPC_PORT": "5"})
    assert refused.value.message == "configuration: server.grpc_port is 'many', want int"
