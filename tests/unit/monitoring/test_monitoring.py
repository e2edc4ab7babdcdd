"""What Prometheus and Grafana are given: alert rules that promtool takes, a dashboard of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.metrics import BY_NAME
from tests.lab.peers import unpacked

MONITORING = Path(__file__).parents[3] / "docs" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
DASHBOARD = MONITORING / "grafana-algate.json"
LABELS = {"instance", "job", "process", "le"}


def promtool(*arguments: str | Path) -> None:
    program = unpacked("prometheus", "usr/bin/promtool")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    """Of the dashboard, as Prometheus would see them."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [text.replace("$__rate_interval", "5m").replace("$instance", ".*") for text in found]


def test_the_alert_rules_are_rules() -> None:
    promtool("check", "rules", ALERTS)


def test_the_alerts_fire_when_they_should_and_not_else() -> None:
    promtool("test", "rules", Path(__file__).with_name("alerts.test.yml"))


def test_the_dashboards_expressions_are_expressions(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(expressions())]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML too
    promtool("check", "rules", path)


@pytest.mark.parametrize("text", [*expressions(), ALERTS.read_text()], ids=lambda text: text[:60])
def test_what_is_asked_for_is_there(text: str) -> None:
    """Each metric exists, counters are asked as such, and labels in matchers and groups are the metric's own."""
    names = re.findall(r"algate_[a-z_]+", text)
    assert names
    known = set()
    for name in names:
        metric = BY_NAME.get(name) or BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name))
        assert metric is not None, name
        assert (metric.kind == "histogram") == name.endswith(("_bucket", "_sum", "_count")), name
        known |= LABELS | set(metric.labels)
    for group in re.findall(r"by \(([^)]*)\)", text):
        assert set(group.replace(" ", "").split(",")) <= known, text
    for label in re.findall(r"[{,](\w+)(?:=~|!=|=)", text):
        assert label in known, text


def test_panels_do_not_lie_on_one_another() -> None:
    used: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & used, panel["title"]
        assert at["x"] + at["w"] <= 24
        used |= cells
