"""Two gateways on one database: SQLite, and a real PostgreSQL where one is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gateway import cli
from gateway.config.tables import ServerConfig, StateConfig
from gateway.monitoring.usage.history import UsageHistory
from gateway.monitoring.usage.store import UsageStore
from gateway.state.open import open_database
from tests.support.postgres import Postgres, patient, postgres_server
from tests.support.server import Running, config_of, error_of, scripted, serving, wait_until

KEYS = ServerConfig(api_keys={"anna": "sk-anna", "ben": "sk-ben"})
ANNA, BEN = ({"authorization": f"Bearer sk-{name}"} for name in ("anna", "ben"))
PATH = "/v1/responses"


class Pair(NamedTuple):
    a: httpx.Client
    b: httpx.Client
    url: str

    @property
    def both(self) -> tuple[httpx.Client, httpx.Client]:
        return self.a, self.b


def gateway(stack: ExitStack, url: str, folder: Path) -> Running:
    """One with its own connections, as another process has them."""
    models = {"m": scripted("a b c"), "slow": scripted("a b", token_s=3600.0)}
    config = config_of(models, KEYS, state=StateConfig(url=url, keys=True))
    database = open_database(url, folder)
    return stack.enter_context(serving(config, database=database, usage=UsageHistory(UsageStore(database, 30))))


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("state")
    url = f"sqlite:///{folder / 'shared.sqlite'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").fresh("pair")
    with patient(), pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr("gateway.lanes.limits.shared_keys._AGE_S", 0.2)
        patch.setattr("gateway.lanes.limits.shared._VALID_S", 3600)  # a gateway that was stopped for long is not gone
        clients = [stack.enter_context(gateway(stack, url, folder).http(headers=ANNA)) for _ in range(2)]
        yield Pair(*clients, url)


def create(client: httpx.Client, **fields: Any) -> Any:
    response = client.post(PATH, json={"model": "m", "input": "hello", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def streamed_id(client: httpx.Client, **fields: Any) -> str:
    """The id of a response, read up to its last event only."""
    with client.stream("POST", PATH, json={"model": "m", "input": "hello", "stream": True, **fields}) as response:
        for line in response.iter_lines():
            if line.startswith("data:") and "response.completed" in line:
                return str(line.partition('"id":"')[2].partition('"')[0])
    raise AssertionError("the stream has no end")


def test_conversation_continues_through_the_other_gateway(pair: Pair) -> None:
    first = streamed_id(pair.a)
    second = create(pair.b, previous_response_id=first)
    third = create(pair.a, previous_response_id=second["id"])
    tokens = [each["usage"]["input_tokens"] for each in (second, third)]
    assert tokens[0] < tokens[1]
    assert pair.b.get(f"{PATH}/{third['id']}").json() == third


def test_every_end_of_a_stream_is_after_the_write(pair: Pair) -> None:
    for _ in range(20):
        assert pair.b.get(f"{PATH}/{streamed_id(pair.a)}").status_code == 200


def test_item_is_found_through_the_other_gateway(pair: Pair) -> None:
    made = create(pair.a, input=[{"role": "user", "content": "x", "id": "id with \0 and ' and " + "y" * 5000}])
    for id in (made["output"][0]["id"], "id with \0 and ' and " + "y" * 5000):
        items = [{"type": "item_reference", "id": id}, {"role": "user", "content": "and?"}]
        assert create(pair.b, input=items)["usage"]["input_tokens"] > 0


def test_deleted_response_is_gone_everywhere(pair: Pair) -> None:
    made = create(pair.a)
    assert pair.b.delete(f"{PATH}/{made['id']}").json()["deleted"]
    for client in pair.both:
        assert client.get(f"{PATH}/{made['id']}").status_code == 404
        assert client.delete(f"{PATH}/{made['id']}").status_code == 404
        reply = client.post(PATH, json={"model": "m", "input": "x", "previous_response_id": made["id"]})
        assert error_of(reply)["code"] == "previous_response_not_found"
        reply = client.post(
            PATH, json={"model": "m", "input": [{"type": "item_reference", "id": made["output"][0]["id"]}]}
        )
        assert reply.status_code == 404


def test_response_is_private_to_its_key(pair: Pair) -> None:
    made = create(pair.a)
    assert pair.b.get(f"{PATH}/{made['id']}", headers=BEN).status_code == 404
    assert pair.b.delete(f"{PATH}/{made['id']}", headers=BEN).status_code == 404
    assert pair.b.get(f"{PATH}/{made['id']}").status_code == 200


def test_response_that_is_not_to_be_stored_is_not(pair: Pair) -> None:
    made = create(pair.a, store=False)
    assert [client.get(f"{PATH}/{made['id']}").status_code for client in pair.both] == [404, 404]


def test_usage_is_the_sum(pair: Pair) -> None:
    for client in pair.both:
        before = client.get("/gateway/usage").json()["total"]["answered"]
    for client in (pair.a, pair.b, pair.b):
        create(client)
    for client in pair.both:
        client.get("/gateway/usage")  # a gateway writes its numbers before it reads
    assert [client.get("/gateway/usage").json()["total"]["answered"] - before for client in pair.both] == [3, 3]


def keys_command(pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setenv("NPU_GATEWAY_STATE_URL", pair.url)
    monkeypatch.setenv("NPU_GATEWAY_STATE_KEYS", "true")
    assert cli.main(["keys", *words]) == 0
    return capsys.readouterr().out.strip()


def wait_for(client: httpx.Client, key: dict[str, str], status: int) -> None:
    wait_until(lambda: client.get("/v1/models", headers=key).status_code == status, f"the key does not get {status}")


def test_key_of_the_command_counts_everywhere_until_it_is_revoked(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = keys_command(pair, monkeypatch, capsys, "add", "carl", "--models", "m")
    carl = {"authorization": f"Bearer {key}"}
    for client in pair.both:
        wait_for(client, carl, 200)
        assert [card["id"] for card in client.get("/v1/models", headers=carl).json()["data"]] == ["m"]
        assert client.get("/v1/models", headers={"authorization": f"Bearer {key}x"}).status_code == 401
    made = create(pair.a)
    assert pair.b.get(f"{PATH}/{made['id']}", headers=carl).status_code == 404
    assert key not in keys_command(pair, monkeypatch, capsys, "list", "--json")
    keys_command(pair, monkeypatch, capsys, "revoke", "carl")
    for client in pair.both:
        wait_for(client, carl, 401)


def test_limit_of_a_key_holds_for_both_together(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = keys_command(pair, monkeypatch, capsys, "add", "dora", "--concurrent-requests", "1")
    dora, request = {"authorization": f"Bearer {key}"}, {"model": "m", "prompt": "x"}
    for client in pair.both:
        wait_for(client, dora, 200)
    slow = {"model": "slow", "prompt": "x", "stream": True}
    with pair.a.stream("POST", "/v1/completions", json=slow, headers=dora) as running:
        assert running.status_code == 200
        assert pair.b.post("/v1/completions", json=request, headers=dora).status_code == 429
        assert pair.b.post("/v1/completions", json=request).status_code == 200
    wait_until(
        lambda: pair.b.post("/v1/completions", json=request, headers=dora).status_code == 200,
        "the request that ended still counts",
    )


def test_database_that_hangs_delays_an_answer_once(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.fresh("hangs")
    with patient(1.0), ExitStack() as stack:
        client = stack.enter_context(gateway(stack, url, tmp_path).http(headers=ANNA))
        create(client)
        with postgres.frozen():
            made = [create(client) for _ in range(3)]
        assert [client.get(f"{PATH}/{each['id']}").status_code for each in made] == [200] * 3


def test_database_that_is_down_stops_no_answer(
    postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.fresh("down")
    with patient(), ExitStack() as stack, caplog.at_level(logging.INFO):
        a, b = (stack.enter_context(gateway(stack, url, tmp_path).http(headers=ANNA)) for _ in range(2))
        of_b = create(b)
        before = create(a)
        postgres.stop()
        during = create(a)
        assert create(a, previous_response_id=before["id"])["usage"]["input_tokens"] > 0
        assert create(a, previous_response_id=during["id"])["usage"]["input_tokens"] > 0
        for reply in (
            a.get(f"{PATH}/{of_b['id']}"),
            a.delete(f"{PATH}/{before['id']}"),
            a.post(PATH, json={"model": "m", "input": "x", "previous_response_id": of_b["id"]}),
        ):
            assert reply.status_code == 503 and int(reply.headers["retry-after"]) == 5
            assert "cannot be used now" in error_of(reply)["message"]
        for what in ("read", "written"):
            assert sum(f"the shared state cannot be {what}" in line for line in caplog.messages) == 1
        assert "s3cret" not in caplog.text
        postgres.start()
        wait_until(lambda: b.get(f"{PATH}/{create(a)['id']}").status_code == 200, "the database is not used again")
        for client in (a, b):
            client.get("/gateway/usage")
        answered = [client.get("/gateway/usage").json()["total"]["answered"] for client in (a, b)]
        assert answered[0] == answered[1] >= 6  # no number is lost
