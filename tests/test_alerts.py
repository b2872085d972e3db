"""What Prometheus is asked for, the alert rules and the dashboard, is what a worker has and says what it should."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).parent.parent
MONITOR = ROOT / "deploy" / "monitor"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((MONITOR / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
SCENARIOS = yaml.safe_load((MONITOR / "alerts.test.yml").read_text(encoding="utf-8"))
PROMTOOL = os.environ.get("EMBEDMILL_PROMTOOL") or shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool on the PATH (it comes with Prometheus), and EMBEDMILL_PROMTOOL names none"
)


def promtool(*command: str | Path) -> None:
    done = subprocess.run([str(PROMTOOL), *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_fire_in_the_scenarios_in_which_they_must_and_in_no_other() -> None:
    promtool("test", "rules", MONITOR / "alerts.test.yml")


@needs_promtool
def test_prometheus_takes_its_configuration_with_the_rules() -> None:
    promtool("check", "config", MONITOR / "prometheus.yml")


def test_every_rule_has_a_scenario_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: set[str] = set()
    still: set[str] = set()
    for scenario in SCENARIOS["tests"]:
        cases = scenario["alert_rule_test"]
        firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
        fires |= firing
        still |= {case["alertname"] for case in cases} - firing
    assert fires == still == RULES.keys()


def test_the_rules_are_those_of_the_page_and_each_says_what_mends_it() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(Embedmill\w+)`", page, re.MULTILINE)) == RULES.keys()
    for name, rule in RULES.items():
        assert set(rule["annotations"]) == {"summary", "description", "command"}, name
        command = rule["annotations"]["command"].replace(" {{ $labels.job }}", "")
        assert f"`{command}`" in page, name
        assert rule["labels"].keys() == {"severity"}, name


def queries() -> Iterator[str]:
    """The rules' expressions and the dashboard's."""
    yield from (rule["expr"] for rule in RULES.values())
    dashboard = json.loads((MONITOR / "grafana" / "dashboards" / "embedmill.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        yield from (target["expr"].replace("$__rate_interval", "1m") for target in panel["targets"])


def metrics_of(query: str) -> set[str]:
    """The metrics that a query names.

    Raises:
        ValueError: it is no PromQL.
    """
    found: set[str] = set()

    def note(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(str(node.name))

    promql_parser.walk(promql_parser.parse(query), note)
    return found


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_is_promql_and_names_metrics_of_the_pages_table(query: str) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`embedmill_.*?) \|", page, re.MULTILINE)
    table = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    asked = {re.sub(r"(batch_seconds)_(sum|count|bucket)$", r"\1", name) for name in metrics_of(query)}
    assert asked
    assert asked <= table


def test_compose_gives_prometheus_the_rules_that_its_configuration_names() -> None:
    config = yaml.safe_load((MONITOR / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["rule_files"] == ["alerts.yml"]
    # The gauges' own label `job` has to outlive the scrape: rules and dashboard tell jobs apart by it.
    assert all(scrape["honor_labels"] for scrape in config["scrape_configs"])
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["prometheus"]
    for name in ("prometheus.yml", *config["rule_files"]):
        assert f"./deploy/monitor/{name}:/etc/prometheus/{name}:ro" in service["volumes"]
