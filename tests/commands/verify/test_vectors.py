"""The checks of embeddings and rankings: against the gateway itself, and against servers with a mistake."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from gateway import cli
from gateway.commands.verify import vectors
from gateway.commands.verify.check import results
from gateway.commands.verify.peer import Peer
from tests.support.server import config_of, scripted, serving

LIST, ONE, BASE64, DIMENSIONS, EMPTY, NEAR, RANKED, TOP = [each.name for each in vectors.checks(("embeddings",))]
Mistake = Callable[[dict[str, Any]], object]


class Server:
    """Answers as a gateway with a good model does, or with one mistake."""

    model, capabilities = "good", ("embeddings",)

    def __init__(self, mistake: Mistake) -> None:
        self._mistake = mistake

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
        if body.get("input") == "":
            return (200, "{}") if self._mistake({"empty": True}) else (400, "{}")
        reply = ranking(body) if path == "/rerank" else vectors_of(body)
        self._mistake(reply)
        return 200, json.dumps(reply)


def vectors_of(body: Mapping[str, Any]) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    numbers = [[1.0, 0.0, 0.5, 0.1] if "eggs" in text else [0.0, 1.0, 0.0, 0.2] for text in texts]
    rows: list[Any] = [row[: body.get("dimensions", 4)] for row in numbers]
    if body.get("encoding_format") == "base64":
        rows = [base64.b64encode(array("f", row).tobytes()).decode() for row in rows]
    data = [{"index": index, "embedding": row} for index, row in enumerate(rows)]
    return {"data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}


def ranking(body: Mapping[str, Any]) -> dict[str, Any]:
    found = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
    return {"results": found[: body.get("top_n", 2)]}


def ended(mistake: Mistake) -> dict[str, str]:
    peer = cast(Peer, Server(mistake))
    found = results(vectors.checks(("embeddings",)), peer)
    return {each.name: each.outcome for each in found if each.outcome != "passed"}


def one_vector(reply: dict[str, Any]) -> None:
    del reply.get("data", [])[1:]


def whole_vectors(reply: dict[str, Any]) -> None:
    for each in reply.get("data", []):
        if isinstance(each["embedding"], list):
            each["embedding"] = (each["embedding"] * 4)[:4]


def one_direction(reply: dict[str, Any]) -> None:
    for each in reply.get("data", []):
        each["embedding"] = [1.0, 1.0] if isinstance(each["embedding"], list) else each["embedding"]


def reversed_order(reply: dict[str, Any]) -> None:
    for each in reply.get("results", []):
        each["index"] = 1 - each["index"]


def unsorted(reply: dict[str, Any]) -> None:
    reply.get("results", []).reverse()


def no_usage(reply: dict[str, Any]) -> None:
    reply.pop("usage", None)


def one_more(reply: dict[str, Any]) -> None:
    reply.get("results", []).append({"index": 9, "relevance_score": 0.0})


GATEWAY_OF_VECTORS = dict.fromkeys((LIST, ONE, BASE64, DIMENSIONS, NEAR), "gateway")


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        (lambda reply: None, {}),
        (one_vector, {LIST: "gateway", ONE: "gateway", NEAR: "gateway"}),
        (no_usage, GATEWAY_OF_VECTORS),
        (whole_vectors, {DIMENSIONS: "gateway"}),
        (one_direction, {BASE64: "gateway", DIMENSIONS: "gateway", NEAR: "model"}),
        (lambda reply: "empty" in reply, {EMPTY: "gateway"}),
        (reversed_order, {RANKED: "model"}),
        (unsorted, {RANKED: "gateway"}),
        (one_more, {RANKED: "gateway", TOP: "gateway"}),
    ],
)
def test_mistake_is_found_by_its_check(mistake: Mistake, wrong: dict[str, str]) -> None:
    assert ended(mistake) == wrong


@pytest.mark.parametrize("kind", ["encoder", "cross-encoder"])
def test_gateway_does_its_part(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """A script makes vectors from hashes: what is near is chance, and not the gateway's part."""
    with serving(config_of({"chat": scripted(), "vectors": scripted(kind=kind)})) as running:
        code = cli.main(["verify", "vectors", "--url", running.url])
    out = capsys.readouterr().out
    assert code == 0 and "gateway:" not in out and "rerank" in out
    assert ("embeddings" in out) == (kind == "encoder")
