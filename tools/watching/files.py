"""`make dashboards`: writes the dashboards and rules in `deploy/` from the metrics of `service.metrics`."""

from pathlib import Path

from tools.watching import plain_yaml
from tools.watching.dashboards import DASHBOARDS, written
from tools.watching.rules import alerting_rules, recording_rules

ROOT = Path(__file__).parents[2]
_COMMENT = "Written by `make dashboards` from tools/watching/rules.py."


def files() -> dict[str, str]:
    """All files by their path."""
    pages = {f"deploy/grafana/dashboards/{each.file}": written(each) for each in DASHBOARDS}
    rules = {"recording": recording_rules(), "alerts": alerting_rules()}
    texts = {f"deploy/prometheus/rules/{name}.yml": plain_yaml.text(each, _COMMENT) for name, each in rules.items()}
    return pages | texts


def write(root: Path) -> None:
    """Writes them below a folder."""
    for path, text in files().items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def main() -> None:
    write(ROOT)
    print("\n".join(files()))


if __name__ == "__main__":
    main()
