"""GET /gateway/usage over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.config.tables import ServerConfig
from gateway.monitoring.usage.history import UsageHistory
from gateway.monitoring.usage.store import UsageStore
from gateway.state.sqlite import SqliteDatabase
from tests.support.server import config_of, error_of, scripted, serving

KEYS = ServerConfig(api_keys={"anna": "sk-anna", "ben": "sk-ben"})


def path_of(kept: UsageHistory) -> Path:
    return Path(kept.store.database.label)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> UsageHistory:
    return UsageHistory(UsageStore(SqliteDatabase(tmp_path_factory.mktemp("usage") / "state.sqlite"), 30))


@pytest.fixture(scope="module")
def http(history: UsageHistory) -> Iterator[httpx.Client]:
    with serving(config_of({"m": scripted("a b c")}, KEYS), usage=history) as running, running.http() as client:
        yield client


ANNA, BEN = ({"authorization": f"Bearer sk-{name}"} for name in ("anna", "ben"))


def ask(http: httpx.Client, headers: dict[str, str], model: str = "m") -> None:
    http.post("/v1/completions", json={"model": model, "prompt": "one two"}, headers=headers)


def test_every_key_sees_the_usage_of_all_keys(http: httpx.Client) -> None:
    for headers in (ANNA, ANNA, BEN):
        ask(http, headers)
    ask(http, BEN, "nowhere" * 99)
    for headers in (ANNA, BEN):
        report = http.get("/gateway/usage", headers=headers).json()
        assert report["days"] == 7 and len(report["by_day"]) in (1, 2)  # midnight can be between two requests
        assert [(row["name"], row["requests"]) for row in report["by_key"]] == [("anna", 2), ("ben", 2)]
        models = [(row["name"], row["answered"], row["refused"]) for row in report["by_model"]]
        assert models == [("m", 3, 0), ("", 0, 1)]
        assert report["total"]["endings"] == {"stop": 3, "model_not_found": 1}
        assert report["total"]["completion_tokens"] == 12 and report["total"]["ttft_p50_ms"] > 0


def test_rows_are_joined_and_chosen(http: httpx.Client) -> None:
    report = http.get("/gateway/usage?by=model,key&key=anna&model=m", headers=ANNA).json()
    assert [(row["model"], row["key"], row["requests"]) for row in report["rows"]] == [("m", "anna", 2)]
    assert report["total"]["requests"] == 2
    response = http.get("/gateway/usage?by=model,hour", headers=ANNA)
    assert response.status_code == 400 and error_of(response)["param"] == "by"


def test_usage_needs_a_key(http: httpx.Client) -> None:
    assert http.get("/gateway/usage").status_code == 401


@pytest.mark.parametrize("days", ["0", "3661", "-1", "x", "", "1e3", "\u0661", "7&days=8", "9" * 5000])
def test_wrong_number_of_days_is_refused(http: httpx.Client, days: str) -> None:
    response = http.get(f"/gateway/usage?days={days}", headers=ANNA)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == "days" and "from 1 to 3660" in error["message"] and len(error["message"]) < 300


def test_file_that_cannot_be_read_is_503_and_answers_go_on(http: httpx.Client, history: UsageHistory) -> None:
    kept = path_of(history).rename(path_of(history).with_name("kept"))
    path_of(history).mkdir()
    response = http.get("/gateway/usage", headers=ANNA)
    assert response.status_code == 503 and "cannot be read now" in error_of(response)["message"]
    ask(http, ANNA)
    path_of(history).rmdir()
    kept.rename(path_of(history))
    assert http.get("/gateway/usage", headers=ANNA).json()["total"]["answered"] >= 1


def test_without_history_it_is_404() -> None:
    with serving(config_of({"m": scripted("a")})) as running, running.http() as client:
        response = client.get("/gateway/usage")
    assert response.status_code == 404 and "[usage]" in error_of(response)["message"]
