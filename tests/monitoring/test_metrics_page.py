"""docs/metrics.md, docs/grafana.json and docs/alerts.yml against a scrape of a gateway that has answered.

promtool of Prometheus checks the rules and the scrape too, where it is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.config.tables import BreakerConfig, ScriptedModel, ServerConfig, UpstreamModel
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S
from tests.support.server import config_of, script_of, serving

DOCS = ROOT / "docs"
KEY = "a-key-of-24-characters-or-more"
ROW = re.compile(r"^\| `((?:gateway_|vllm:)\w+)` \| (\w+) \|([\w, ]*)\| .+ \|$", re.MULTILINE)
NAME = re.compile(r"\b(?:gateway_|vllm:)\w+")
PROMTOOL = shutil.which("promtool")

Family = tuple[str, str, str]  # name, type, labels


@pytest.fixture(scope="module")
def scrape() -> Iterator[str]:
    """After answers of a fast model, and of one that is slow, so that its breaker opens and its fallback answers."""
    slow = BreakerConfig(latency_ms=1e-6, prompt_token_ms=0, token_ms=0, min_calls=1, probe_itself=False)
    models = {
        "fast": ScriptedModel(script=script_of(replies=("one two three",), token_s=0.001)),
        "slow": ScriptedModel(script=script_of(replies=("one two",), ttft_s=0.001), breaker=slow, fallback="fast"),
        "far": UpstreamModel(url="http://127.0.0.1:9/v1"),  # where no server is
    }
    config = config_of(models, ServerConfig(api_keys={"laptop": KEY}), breaker=BreakerConfig())
    with serving(config) as running, running.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        for model in ("fast", "fast", "slow", "slow", "far", "unknown"):
            message = {"role": "user", "content": "hello"}
            http.post("/v1/chat/completions", json={"model": model, "messages": [message]})
        yield http.get("/metrics").text


@pytest.fixture(scope="module")
def families(scrape: str) -> dict[str, Family]:
    """By the name as it is in an expression, without the suffix of a histogram's series."""
    found = {}
    for family in text_string_to_metric_families(scrape):
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        if samples:
            name = family.name + "_total" * (family.type == "counter")
            labels = sorted({label for sample in samples for label in sample.labels} - {"le"})
            found[name] = (name, family.type, ", ".join(labels))
    return found


def test_page_lists_every_metric_with_type_and_labels(families: dict[str, Family]) -> None:
    rows = ROW.findall((DOCS / "metrics.md").read_text(encoding="utf-8"))
    listed = {name: (name, kind, ", ".join(sorted(labels.strip().split(", ")))) for name, kind, labels in rows}
    assert listed == families


def test_labels_have_no_text_of_a_request(scrape: str) -> None:
    assert KEY not in scrape and "unknown" not in scrape.replace("(unknown path)", "")
    assert 'gateway_key_requests_total{key="laptop",status="404"} 1.0' in scrape
    assert 'gateway_key_tokens_total{key="laptop",kind="completion"}' in scrape


def test_values_under_both_names_are_equal(scrape: str) -> None:
    values = dict(line.rsplit(" ", 1) for line in scrape.splitlines() if not line.startswith("#"))
    assert values['gateway_first_token_seconds_count{model="fast"}'] == "3.0"
    for own, name in (
        ('gateway_first_token_seconds_count{model="fast"}', "vllm:time_to_first_token_seconds_count"),
        ('gateway_token_seconds_sum{model="fast"}', "vllm:inter_token_latency_seconds_sum"),
        ('gateway_tokens_total{kind="completion",model="fast"}', "vllm:generation_tokens_total"),
    ):
        assert values[name + '{engine="0",model_name="fast"}'] == values[own]
    assert values['vllm:request_success_total{engine="0",finished_reason="stop",model_name="fast"}'] == "3.0"
    assert values['gateway_slow_answers_total{cause="prompt",model="slow"}'] == "1.0"
    assert values['gateway_breaker_state{model="slow",state="open"}'] == "1.0"
    assert float(values['gateway_memory_bytes{process="(gateway)"}']) > 1e7


def test_dashboard_uses_only_metrics_that_exist(families: dict[str, Family]) -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    expressions = panel_expressions(".*", "5m")
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert len(expressions) > 15 and len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for expression in expressions + variables:
        check_expression(expression, families)


def test_alerts_use_only_metrics_that_exist(families: dict[str, Family]) -> None:
    rules = alert_rules()
    assert len(rules) >= 5
    for rule in rules:
        assert (
            {"alert", "expr", "labels", "annotations"}
            <= rule.keys()
            <= {"for", "alert", "expr", "labels", "annotations"}
        )
        assert rule["annotations"].keys() == {"summary", "next_step"}
        if not rule["expr"].startswith("up{"):
            check_expression(rule["expr"], families)


def test_page_names_every_alert_file() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert "(grafana.json)" in page and "(alerts.yml)" in page
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    job = yaml.safe_load(block)["scrape_configs"][0]
    assert job["job_name"] in next(rule["expr"] for rule in alert_rules() if rule["expr"].startswith("up{"))
    if PROMTOOL:
        config = block.replace('rule_files: ["alerts.yml"]', f'rule_files: ["{(DOCS / "alerts.yml").as_posix()}"]')
        check_with_promtool("check", "config", "--syntax-only", "/dev/stdin", text=config)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_accepts_rules_and_scrape(scrape: str) -> None:
    check_with_promtool("check", "rules", "/dev/stdin", text=(DOCS / "alerts.yml").read_text(encoding="utf-8"))
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(panel_expressions(".*", "5m"))]
    check_with_promtool(
        "check", "rules", "/dev/stdin", text=yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]})
    )
    done = run_promtool("check", "metrics", text=scrape)
    problems = [line for line in done.stderr.splitlines() if "should not contain ':'" not in line]
    assert not problems, problems  # a colon is for recording rules, and for vLLM


def panel_expressions(selected: str, interval: str) -> list[str]:
    """The expressions of the dashboard, with these values of its variables."""
    dashboard = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [re.sub(r"\$(instance|model)\b", selected, text).replace("$__rate_interval", interval) for text in found]


def alert_rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((DOCS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def check_expression(expression: str, families: dict[str, Family]) -> None:
    names = NAME.findall(expression)
    assert names, expression
    labels: set[str] = set()
    for name in names:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        family = families.get(name) or families.get(base)
        assert family is not None, f"there is no metric {name}"
        labels |= set(family[2].split(", "))
    used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    used |= {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
    assert used <= labels | {"instance", "job", "le"}, (expression, used - labels)


def run_promtool(*arguments: str, text: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL
    return subprocess.run(
        [PROMTOOL, *arguments], input=text, capture_output=True, encoding="utf-8", timeout=PATIENCE_S, check=False
    )


def check_with_promtool(*arguments: str, text: str) -> None:
    done = run_promtool(*arguments, text=text)
    assert done.returncode == 0, done.stdout + done.stderr
