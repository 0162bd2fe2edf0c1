"""`hedge = true`: two servers get a request whose first token is late. Over sockets, with injected measured times."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.engines.upstream.engine import UpstreamEngine
from gateway.engines.upstream.hedge import ENOUGH, MOST_CREDIT, MOST_LOSSES, SHARE
from gateway.engines.upstream.targets.target import Target
from tests.support.hostile import CHAT, Behave, Hostile, chunk, hostile, post, stream, wait_until_closed
from tests.support.server import Running, config_of, serving, wait_until
from tests.system.targets.backends import targets_of
from tests.system.targets.bad_servers import BAD, chats_of, misbehave

PATH = "/v1/chat/completions"
GOOD = stream(chunk(content="one "), chunk(content="two"), chunk("stop"))
LATE_S = 0.01


@contextmanager
def hedging(first: bytes | Behave, second: bytes | Behave) -> Iterator[tuple[Running, Hostile, Hostile]]:
    """A gateway before two servers. The first one gets the requests while it is up. Only requests to it can be late."""
    with hostile() as one, hostile() as other:
        misbehave(one, first)
        misbehave(other, second)
        model = targets_of(*(f"http://127.0.0.1:{server.port}/v1" for server in (one, other)), hedge=True)
        with serving(config_of({"m": model})) as gateway:
            engine = engine_of(gateway)
            assert engine.hedging is not None
            engine.targets[1].running = 1  # so that the first one is chosen, and the second one is not overloaded
            for _ in range(max(ENOUGH, int(10 * MOST_CREDIT))):
                for target, seconds in zip(engine.targets, (LATE_S, 1000.0), strict=True):
                    engine.hedging.answered(target, seconds)
                    engine.hedging.earn()
            yield gateway, one, other


def engine_of(gateway: Running) -> UpstreamEngine:
    engine = gateway.app.state.router.lanes["m"].engine
    assert isinstance(engine, UpstreamEngine)
    return engine


async def ended(target: Target) -> None:
    target.health.failed("is down")


def routes(gateway: Running, count: int) -> list[str]:
    with gateway.http(verify=False) as http:
        return [http.post(PATH, json={"model": "m", **CHAT}).headers["x-gateway-route"] for _ in range(count)]


def sums(gateway: Running) -> dict[str, float]:
    """Each counter of the gateway, summed over its labels."""
    with gateway.http(verify=False) as http:
        families = text_string_to_metric_families(http.get("/metrics").text)
        found: dict[str, float] = {}
        for family in families:
            for sample in family.samples:
                labels = ",".join(v for k, v in sorted(sample.labels.items()) if k in ("winner", "kind", "outcome"))
                name = f"{sample.name} {labels}".strip()
                found[name] = found.get(name, 0) + sample.value
        return found


def test_late_first_token_is_answered_by_the_second_server_and_counted_once() -> None:
    with hedging(BAD["hangs"], GOOD) as (gateway, one, other):
        found = routes(gateway, 2)
        hedged = f"127.0.0.1:{other.port};reason=hedge;attempts=2;hedged"
        late = chats_of(one)
        assert late and found.count(hedged) == late, "how equal servers take turns is not the point here"
        wait_until_closed(one)
        counts = sums(gateway)
        assert counts["gateway_tokens_total completion"] == 2 * 2 and counts["gateway_requests_total ok"] == 2
        assert counts["gateway_target_attempts_total"] == 2 + late and counts["gateway_target_requests_total"] == 2
        assert counts["gateway_hedged_requests_total second"] == late


def test_server_that_never_wins_gets_no_more_requests() -> None:
    with hedging(BAD["hangs"], GOOD) as (gateway, one, _):
        found = routes(gateway, 4 * MOST_LOSSES)
        assert sum("reason=hedge" in route for route in found) == MOST_LOSSES == chats_of(one)


def test_requests_that_wait_for_a_server_that_never_wins_leave_it() -> None:
    count = 2 * MOST_LOSSES
    with hedging(BAD["hangs"], GOOD) as (gateway, one, other), ThreadPoolExecutor(count) as pool:
        engine = engine_of(gateway)
        assert engine.hedging is not None
        engine.targets[1].running = 100  # so that all go to the first one
        found = [pool.submit(routes, gateway, 1) for _ in range(count)]
        wait_until(lambda: chats_of(one) == count, "the requests did not go to the first server")
        while engine.hedging.has_credit():
            engine.hedging.spend()
        for _ in range(int(MOST_LOSSES / SHARE)):
            engine.hedging.earn()
        engine.targets[1].running = 0
        assert [route for each in found for route in each.result()] == [
            f"127.0.0.1:{other.port};reason=hedge;attempts=2;hedged"
        ] * count


def test_first_server_that_is_late_and_wins_closes_the_other() -> None:
    servers: list[Hostile] = []

    async def after_the_other(_: StreamReader, writer: StreamWriter) -> None:
        while not chats_of(servers[1]):  # noqa: ASYNC110 (another thread counts)
            await asyncio.sleep(0.005)
        writer.write(GOOD)

    with hedging(after_the_other, BAD["hangs"]) as (gateway, *both):
        servers += both
        [route] = routes(gateway, 1)
        assert route == f"127.0.0.1:{servers[0].port};reason=least-loaded;attempts=2;hedged"
        wait_until_closed(servers[1])
        counts = sums(gateway)
        assert counts["gateway_tokens_total completion"] == 2 and counts["gateway_hedged_requests_total first"] == 1


@pytest.mark.parametrize("state", ["down", "loaded", "over the limit"])
def test_late_request_is_not_sent_twice_if_the_second_server_is(state: str) -> None:
    async def late(_: StreamReader, writer: StreamWriter) -> None:
        await asyncio.sleep(30 * LATE_S)
        writer.write(GOOD)

    with hedging(late, GOOD) as (gateway, one, other):
        engine = engine_of(gateway)
        assert engine.hedging is not None
        if state == "down":
            asyncio.run(ended(engine.targets[1]))
        elif state == "loaded":
            engine.targets[1].running = 3
        while state == "over the limit" and engine.hedging.has_credit():
            engine.hedging.spend()
        assert routes(gateway, 1)[0].startswith(f"127.0.0.1:{one.port};")
        assert chats_of(other) == 0


def test_client_that_leaves_closes_both_connections() -> None:
    body = json.dumps({"model": "m", "stream": True, **CHAT})
    head = f"POST {PATH} HTTP/1.1\r\nhost: x.localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    with hedging(BAD["hangs"], BAD["hangs"]) as (gateway, one, other):
        with gateway.connect() as client:
            client.sendall((head + body).encode())
            wait_until(lambda: chats_of(one) == chats_of(other) == 1, "the request was not sent to both servers")
        wait_until_closed(one)
        wait_until_closed(other)
        assert [target.running for target in engine_of(gateway).targets] == [0, 1]  # the 1 is of `hedging`


def test_request_whose_two_servers_fail_has_one_error() -> None:
    servers: list[Hostile] = []

    async def closes_after_the_other(_: StreamReader, writer: StreamWriter) -> None:
        while not chats_of(servers[1]):  # noqa: ASYNC110 (another thread counts)
            await asyncio.sleep(0.005)

    with hedging(closes_after_the_other, BAD["answers_500"]) as (gateway, *both):
        servers += both
        route, message = routes(gateway, 1)[0], post(gateway, PATH, CHAT)[1]
        assert route == f"127.0.0.1:{servers[0].port};reason=least-loaded;attempts=2;hedged"
        assert json.loads(message)["error"]["code"] == "upstream_failed"
        assert min(map(chats_of, servers)) >= 1
