"""Dashboards as Grafana 11 reads them."""

import json
from collections.abc import Iterator
from typing import Any

from convoy.service import metrics
from tools.watching.devices import DEVICES
from tools.watching.model import ONE_MODEL
from tools.watching.overview import OVERVIEW
from tools.watching.panels import Dashboard, Panel, Query
from tools.watching.queries import series
from tools.watching.table import described

DASHBOARDS = (OVERVIEW, ONE_MODEL, DEVICES)
_SCHEMA = 41  # of Grafana 11
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_ALL = ".*"  # also series without the label


def written(dashboard: Dashboard) -> str:
    """The JSON text of a dashboard."""
    return json.dumps(_dashboard(dashboard), indent=2, ensure_ascii=False) + "\n"


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": f"{dashboard.text} Written by `make dashboards`: change tools/watching, not this file.",
        "tags": ["convoy"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "links": [
            {
                "type": "dashboards",
                "tags": ["convoy"],
                "title": "Convoy",
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": list(_variables())},
        "annotations": {"list": [_new_versions()]},
        "panels": list(_panels(dashboard)),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
    }
    build, ready = described(metrics.BUILD).name, described(metrics.MODEL_READY).name
    yield _variable("job", "Job", build)
    yield _variable("instance", "Server", f'{build}{{job=~"$job"}}')
    yield _variable("model", "Model", f'{ready}{{job=~"$job", instance=~"$instance"}}')
    yield _variable("version", "Version", f'{ready}{{job=~"$job", instance=~"$instance", model=~"$model"}}')


def _variable(name: str, label: str, selector: str) -> dict[str, Any]:
    query = f"label_values({selector}, {name})"
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": _SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "allValue": _ALL,
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,  # when the time changes
        "regex": "",
        "sort": 1,
    }


def _new_versions() -> dict[str, Any]:
    """Marks the moments at which a version begins to serve. The offset is the step of the query."""
    serves = series(metrics.MODEL_READY, matchers={"provider": "!="}, chosen=True)
    return {
        "name": "New versions",
        "datasource": _SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "blue",
        "expr": f"({serves} == 1) unless ({serves} offset 1m == 1)",
        "step": "60s",
        "titleFormat": "{{model}} version {{version}} serves",
        "textFormat": "{{instance}}, {{provider}}",
        "tagKeys": "",
        "useValueForTime": False,
    }


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for row in dashboard.rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1},
            "panels": [],
        }
        number, top = number + 1, top + 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > _COLUMNS:
                left, top, height = 0, top + height, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            yield _panel(panel, number, place)
            number, left, height = number + 1, left + panel.width, max(height, panel.height)
        top += height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    field: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": _steps(panel)},
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "custom": _look(panel),
        "mappings": [],
    }
    if panel.kind == "timeseries":
        field["min"] = 0
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": _options(panel),
        "targets": [_target(panel, query, letter) for query, letter in zip(panel.queries, _letters(), strict=False)],
        **({"transformations": _TABLE} if panel.kind == "table" else {}),
    }


def _letters() -> Iterator[str]:
    return iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _target(panel: Panel, query: Query, letter: str) -> dict[str, Any]:
    now = panel.kind in ("stat", "table")
    return {
        "refId": letter,
        "datasource": _SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "format": {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series"),
        "instant": now,
        "range": not now,
        "editorMode": "code",
    }


def _steps(panel: Panel) -> list[dict[str, Any]]:
    if panel.good is not None:
        return [{"color": "red", "value": None}, {"color": "green", "value": panel.good}]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    return [*steps, {"color": "red", "value": panel.bad}] if panel.bad is not None else steps


def _look(panel: Panel) -> dict[str, Any]:
    if panel.kind != "timeseries":
        return {}
    return {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 60 if panel.stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }


# Without the columns of the time and of names that Prometheus adds.
_TABLE = [{"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True}}}]


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "stat":
            return {
                "colorMode": "value",
                "graphMode": "none",
                "textMode": "value",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        case "heatmap":
            return {
                "calculate": False,
                "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5, "scale": "exponential"},
                "filterValues": {"le": 1e-9},
                "legend": {"show": True},
                "rowsFrame": {"layout": "auto"},
                "tooltip": {"mode": "single", "yHistogram": False},
                "yAxis": {"axisPlacement": "left", "unit": panel.unit},
            }
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}
        case _:
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
