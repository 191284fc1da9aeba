"""Dashboards and rules: they are what the table of metrics gives, and each alert fires when it should."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from convoy.service import metrics
from tests.deploy.alert_cases import CASES, Case
from tools.watching import plain_yaml
from tools.watching.dashboards import DASHBOARDS, written
from tools.watching.files import ROOT, files
from tools.watching.panels import Dashboard
from tools.watching.queries import rate, series
from tools.watching.rules import ALERTS, BURNS, JOB, alerting_rules, recording_rules
from tools.watching.table import table

yaml = pytest.importorskip("yaml")

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
# The same values under the names that other dashboards read.
ON_NO_DASHBOARD = {described.name for described in table() if described.name.startswith("nv_inference_")}


def found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("path", files())
def test_file_is_what_the_metrics_give(path: str) -> None:
    assert (ROOT / path).read_text() == files()[path], "run 'make dashboards' and commit"


def test_no_file_is_left_over() -> None:
    kept = [*(GRAFANA / "dashboards").iterdir(), *(PROMETHEUS / "rules").iterdir()]
    assert {str(path.relative_to(ROOT)) for path in kept} == set(files())


@pytest.mark.parametrize("rules", [recording_rules(), alerting_rules()], ids=["recording", "alerts"])
def test_yaml_reads_back_as_what_was_written(rules: dict[str, Any]) -> None:
    assert yaml.safe_load(plain_yaml.text(rules, "a comment")) == rules


def test_a_label_that_a_metric_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="convoy_refusals_total has no label 'version'"):
        rate(metrics.REFUSALS, ("version",))
    with pytest.raises(ValueError, match="convoy_retries_total has no label 'code'"):
        series(metrics.RETRIES, matchers={"code": "=OK"})
    with pytest.raises(ValueError, match="convoy_batch_size is a histogram"):
        series(metrics.BATCH_SIZE)


def test_a_renamed_metric_changes_the_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    before = series(metrics.RETRIES)
    monkeypatch.setattr(metrics.RETRIES, "_name", "convoy_resent")
    assert (before, series(metrics.RETRIES)) == ("convoy_retries_total", "convoy_resent_total")


# ---------------------------------------------------------------------------------------------------------- dashboards


def read(dashboard: Dashboard) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(written(dashboard))
    return result


def expressions(page: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in page["panels"] for target in panel.get("targets", ())]


def names_in(texts: Sequence[str]) -> set[str]:
    """The metrics that expressions name."""
    words = {word for text in texts for word in re.findall(r"\b(?:convoy|nv)_\w+", text)}
    parts = {f"{each.name}_{part}": each.name for each in table() for part in ("bucket", "sum", "count")}
    histograms = {each.name for each in table() if each.kind == "histogram"}
    return {parts[word] if parts.get(word) in histograms else word for word in words}


def test_every_metric_is_on_a_dashboard_or_exempt() -> None:
    shown = names_in([text for each in DASHBOARDS for text in expressions(read(each))])
    assert {described.name for described in table()} - shown == ON_NO_DASHBOARD
    assert shown <= {described.name for described in table()}


def test_a_metric_that_is_shown_nowhere_would_be_seen() -> None:
    texts = [text for each in DASHBOARDS for text in expressions(read(each)) if "convoy_retries_total" not in text]
    assert "convoy_retries_total" not in names_in(texts)


def test_dashboards_keep_their_addresses() -> None:
    assert [read(each)["uid"] for each in DASHBOARDS] == ["convoy-overview", "convoy-model", "convoy-devices"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)
def test_dashboard_follows_the_rules_of_grafana(dashboard: Dashboard) -> None:
    page = read(dashboard)
    assert page["schemaVersion"] == 41
    assert [each["name"] for each in page["templating"]["list"]] == [
        "datasource",
        "job",
        "instance",
        "model",
        "version",
    ]
    panels = page["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert overlapping([panel["gridPos"] for panel in panels]) == []
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert panel["type"] in ("stat", "table") or target["legendFormat"] != "__auto", panel["title"]
            assert (target["format"] == "heatmap") == (panel["type"] == "heatmap")
            assert fixed_windows(target["expr"]) == []
            assert 'job=~"$job"' in target["expr"]
            assert variables_in(target["expr"]) <= KNOWN_VARIABLES


KNOWN_VARIABLES = {"job", "instance", "model", "version", "__rate_interval", "__range"}


def variables_in(expression: str) -> set[str]:
    return set(re.findall(r"\$(\w+)", expression))


def fixed_windows(expression: str) -> list[str]:
    """Windows that do not follow the step of the dashboard."""
    return [text for text in re.findall(r"\[([^\]]*)\]", expression) if text not in ("$__rate_interval", "$__range")]


def overlapping(places: Sequence[dict[str, int]]) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Pairs of places that share a cell, and places that leave the grid."""

    def share(one: dict[str, int], other: dict[str, int]) -> bool:
        return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))

    outside = [(place, place) for place in places if place["x"] < 0 or place["x"] + place["w"] > 24]
    return outside + [pair for pair in combinations(places, 2) if share(*pair)]


def test_what_grafana_would_not_accept_is_found() -> None:
    left, below = {"x": 0, "y": 0, "w": 12, "h": 8}, {"x": 0, "y": 8, "w": 12, "h": 8}
    assert overlapping([left, below]) == []
    assert overlapping([left, {**below, "y": 7}])
    assert overlapping([{**left, "x": 13}])
    assert fixed_windows("rate(a[5m]) + rate(b[$__rate_interval])") == ["5m"]


def test_dashboards_show_where_time_goes_and_what_is_refused() -> None:
    """Stages on top of each other, heat maps, sizes of batches, reasons, padding, predicted against measured."""
    by_title = {panel["title"]: panel for each in DASHBOARDS for panel in read(each)["panels"]}
    stack = by_title["Where the time goes"]
    assert [target["legendFormat"] for target in stack["targets"]] == list(metrics.STAGES)
    assert stack["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    heat = {panel["title"] for panel in by_title.values() if panel["type"] == "heatmap"}
    assert heat == {"How long requests take", "How long images wait", "Sizes of batches"}
    assert "reason" in by_title["Refused, by reason"]["targets"][0]["expr"]
    assert "padding" in by_title["Padding"]["targets"][0]["expr"]
    both = by_title["Predicted and measured"]["targets"]
    assert [target["legendFormat"] for target in both] == ["predicted", "measured"]


def test_grafana_finds_its_files() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/convoy.yml").read_text())["providers"]
    settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["jsonData"]["timeInterval"] == settings["scrape_interval"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")


# --------------------------------------------------------------------------------------------------------------- rules


def test_promtool_accepts_rules_and_configuration() -> None:
    promtool = found("promtool")
    checked = run(promtool, "check", "config", PROMETHEUS / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rules = run(promtool, "check", "rules", *sorted((PROMETHEUS / "rules").iterdir()))
    assert rules.returncode == 0, rules.stdout + rules.stderr


def test_configuration_of_the_page_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "watching.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert yaml.safe_load(block)["scrape_configs"][0]["job_name"] == JOB
    for name in ("ca.pem", "token"):
        (tmp_path / name).touch()
    (tmp_path / "prometheus.yml").write_text(block)
    checked = run(found("promtool"), "check", "config", "--syntax-only", tmp_path / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_amtool_accepts_the_configuration() -> None:
    checked = run(found("amtool"), "check-config", PROMETHEUS / "alertmanager.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(("severity", "receiver"), [("page", "pager"), ("ticket", "tickets")])
def test_alerts_reach_who_should_hear_of_them(severity: str, receiver: str) -> None:
    file = f"--config.file={PROMETHEUS / 'alertmanager.yml'}"
    routed = run(found("amtool"), "config", "routes", "test", file, f"severity={severity}", "alertname=ConvoyDown")
    assert routed.stdout.strip() == receiver


def test_alerts_name_the_job_that_is_scraped() -> None:
    (scraped,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped["job_name"] == JOB
    (names,) = scraped["dns_sd_configs"]
    assert (names["names"], names["port"]) == (["convoy"], 8002)


def test_inhibitions_name_alerts() -> None:
    named = re.findall(r'alertname="(\w+)"', (PROMETHEUS / "alertmanager.yml").read_text())
    assert named
    assert set(named) <= {alert.name for alert in ALERTS}


def test_both_budgets_have_all_four_burn_rates() -> None:
    assert [(burn.rate, burn.long, burn.short) for burn in BURNS] == [
        (14.4, "1h", "5m"),
        (6, "6h", "30m"),
        (3, "1d", "2h"),
        (1, "3d", "6h"),
    ]
    for name, budget in (("ConvoyFaults", "0.001"), ("ConvoyLate", "0.01")):
        texts = [alert.expression for alert in ALERTS if alert.name == name]
        assert [re.findall(r"ratio_rate(\w+) > ([\d.]+) \* ([\d.]+)", text) for text in texts] == [
            [(burn.long, f"{burn.rate:g}", budget), (burn.short, f"{burn.rate:g}", budget)] for burn in BURNS
        ]


def slugs(page: Path) -> set[str]:
    """The names of headings, as GitHub links them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_alert_says_what_to_do_and_where_it_is_explained() -> None:
    for alert in ALERTS:
        notes = alert.rule()["annotations"]
        assert notes["summary"].endswith((".", "s %.")), alert.name
        assert notes["action"].endswith((".", "?")), alert.name
        page, _, heading = notes["runbook"].partition("#")
        assert heading in slugs(ROOT / page), alert.name


def test_every_alert_is_in_the_table_of_the_page() -> None:
    page = (ROOT / "docs" / "watching.md").read_text()
    assert {alert.name for alert in ALERTS} == set(re.findall(r"^\| \[?`(Convoy\w+)`", page, re.MULTILINE))


# ------------------------------------------------------------------------------------------------ unit tests of alerts


def judged(folder: Path, cases: Sequence[Case]) -> subprocess.CompletedProcess[str]:
    """What promtool says of the rules of these alerts, without their texts, which it would compare, too."""
    rules = [alert.rule() for alert in ALERTS if alert.name in {case.alert for case in cases}]
    for rule in rules:
        del rule["annotations"]
    (folder / "alerts.yml").write_text(json.dumps({"groups": [{"name": "alerts", "rules": rules}]}))
    (folder / "recording.yml").write_text(json.dumps(recording_rules()))
    tests = [
        {
            "interval": "1m",
            "name": f"{case.alert} {number}",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "alert_rule_test": [
                {
                    "eval_time": f"{case.minutes}m",
                    "alertname": case.alert,
                    "exp_alerts": [{"exp_labels": labels} for labels in case.fires],
                }
            ],
        }
        for number, case in enumerate(cases)
    ]
    recorded = any("convoy:" in rule["expr"] for rule in rules)
    names = [*(["recording.yml"] if recorded else []), "alerts.yml"]
    text = json.dumps({"rule_files": names, "evaluation_interval": "1m", "tests": tests})
    (folder / "tests.yml").write_text(text)
    return run(found("promtool"), "test", "rules", folder / "tests.yml")


@pytest.mark.parametrize("alert", sorted({alert.name for alert in ALERTS}))
def test_alert_fires_on_its_fault_alone(alert: str, tmp_path: Path) -> None:
    cases = [case for case in CASES if case.alert == alert]
    assert {bool(case.fires) for case in cases} == {True, False}, "want a case that fires and one that does not"
    judgement = judged(tmp_path, cases)
    assert judgement.returncode == 0, judgement.stdout + judgement.stderr


def test_no_case_is_for_an_alert_that_is_gone() -> None:
    assert {case.alert for case in CASES} == {alert.name for alert in ALERTS}


def test_a_wrong_expectation_would_be_seen(tmp_path: Path) -> None:
    fires = next(case for case in CASES if case.alert == "ConvoyDown" and case.fires)
    assert judged(tmp_path, [fires._replace(fires=())]).returncode != 0


def test_texts_of_an_alert_name_the_model_and_the_budget(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.alert == "ConvoyFaults" and len(case.fires) == 2)
    rule = next(alert.rule() for alert in ALERTS if alert.name == "ConvoyFaults" and alert.labels["burn"] == "1")

    def notes(labels: Mapping[str, str]) -> dict[str, str]:
        whose = f"Model {labels['model']}" if "model" in labels else "All of convoy"
        happens = "0.2% of the requests of 3d fails through faults of the server"
        return {**rule["annotations"], "summary": f"{whose}: {happens}. The budget of faults lasts 30 days at 0.1 %."}

    expected = [{"exp_labels": labels, "exp_annotations": notes(labels)} for labels in case.fires]
    paths = [str(PROMETHEUS / "rules" / name) for name in ("recording.yml", "alerts.yml")]
    inputs = [{"series": name, "values": values} for name, values in case.series.items()]
    wanted = [{"eval_time": f"{case.minutes}m", "alertname": case.alert, "exp_alerts": expected}]
    tests = [{"interval": "1m", "input_series": inputs, "alert_rule_test": wanted}]
    file = tmp_path / "texts.yml"
    file.write_text(json.dumps({"rule_files": paths, "evaluation_interval": "1m", "tests": tests}))
    judgement = run(found("promtool"), "test", "rules", file)
    assert judgement.returncode == 0, judgement.stdout + judgement.stderr
