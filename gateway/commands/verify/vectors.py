"""Embeddings and rankings: the form of the replies, and whether texts about one thing are near each other."""

from __future__ import annotations

import base64
import json
import math
from array import array
from collections.abc import Iterator
from operator import mul
from typing import Any

from gateway.commands.verify.check import Check
from gateway.commands.verify.outcome import expect, promise
from gateway.commands.verify.peer import Peer

_NEAR = ("How do I reset my password?", "I forgot the login secret of my account.")
_FAR = "The recipe needs two eggs and a cup of flour."
_CLOSE = 1e-5


def checks(capabilities: tuple[str, ...]) -> Iterator[Check]:
    """Those of a model with `capabilities`."""
    if "embeddings" in capabilities:
        yield Check("embeddings", "a list of texts", _list)
        yield Check("embeddings", "one text", _one)
        yield Check("embeddings", "base64", _base64)
        yield Check("embeddings", "dimensions", _dimensions)
        yield Check("embeddings", "an empty text", _empty)
        yield Check("embeddings", "texts about one thing are near", _near)
    yield Check("rerank", "the most relevant document is first", _ranked)
    yield Check("rerank", "top_n", _top)


def _posted(peer: Peer, path: str, **body: Any) -> Any:
    status, text = peer.post(path, {"model": peer.model, **body})
    promise(status == 200, f"the request got {status}: {text}")
    return json.loads(text)


def _vectors(peer: Peer, texts: str | tuple[str, ...], **options: Any) -> list[Any]:
    reply = _posted(peer, "/embeddings", input=texts, **options)
    usage = reply.get("usage") or {}
    tokens = usage.get("prompt_tokens")
    promise(tokens and tokens == usage.get("total_tokens"), f"the usage is {usage}")
    data = reply["data"]
    count = 1 if isinstance(texts, str) else len(texts)
    promise([each["index"] for each in data] == list(range(count)), f"{len(data)} vectors for {count} texts")
    return [each["embedding"] for each in data]


def _list(peer: Peer) -> None:
    vectors = _vectors(peer, (*_NEAR, _FAR))
    promise(len({len(vector) for vector in vectors}) == 1, "the vectors have different lengths")
    promise(all(math.isfinite(number) for vector in vectors for number in vector), "a number is not finite")


def _one(peer: Peer) -> None:
    alone, among = _vectors(peer, _FAR)[0], _vectors(peer, (*_NEAR, _FAR))[2]
    promise(_cosine(alone, among) > 1 - _CLOSE, "a text alone and among others has different vectors")


def _base64(peer: Peer) -> None:
    numbers = array("f")
    numbers.frombytes(base64.b64decode(_vectors(peer, _FAR, encoding_format="base64")[0]))
    promise(_cosine(numbers.tolist(), _vectors(peer, _FAR)[0]) > 1 - _CLOSE, "base64 has another vector")


def _dimensions(peer: Peer) -> None:
    whole = _vectors(peer, _FAR)[0]
    half = len(whole) // 2
    cut = _vectors(peer, _FAR, dimensions=half)[0]
    promise(len(cut) == half, f"{len(cut)} numbers with dimensions = {half}")
    promise(_cosine(cut, whole[:half]) > 1 - _CLOSE, "it is not the start of the whole vector")


def _empty(peer: Peer) -> None:
    status, _ = peer.post("/embeddings", {"model": peer.model, "input": ""})
    promise(status == 400, f"an empty text gets {status} in place of 400")


def _near(peer: Peer) -> None:
    first, second, other = _vectors(peer, (*_NEAR, _FAR))
    near, far = _cosine(first, second), _cosine(first, other)
    expect(near > far, f"the cosine of two texts about one thing is {near:.3f}, that of others {far:.3f}")


def _results(peer: Peer, **options: Any) -> list[Any]:
    found: list[Any] = _posted(peer, "/rerank", query=_NEAR[0], documents=[_FAR, _NEAR[1]], **options)["results"]
    scores = [each["relevance_score"] for each in found]
    promise(scores == sorted(scores, reverse=True), f"the scores are {scores}")
    return found


def _ranked(peer: Peer) -> None:
    found = [each["index"] for each in _results(peer)]
    promise(sorted(found) == [0, 1], f"two documents have the numbers {found}")
    expect(found[0] == 1, "a document about another thing is first")


def _top(peer: Peer) -> None:
    count = len(_results(peer, top_n=1))
    promise(count == 1, f"{count} documents with top_n = 1")


def _cosine(first: list[float], second: list[float]) -> float:
    product: float = sum(map(mul, first, second))
    return product / max(math.hypot(*first) * math.hypot(*second), 1e-12)
