"""The hostile client of soak.py: requests that once harmed other clients, each with what makes it expensive.

    python scripts/soak_hostile.py URL MODEL SECONDS ATTACKS_AT_ONCE    prints its replies by attack and status, as JSON

It is a separate process of low priority, because its own work would delay the measured clients. What it makes the
gateway do has the priority that the gateway gives it.

Every attack is one small request that looks ordinary, or a few. Its answer does not matter: what counts is what the
other clients feel.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import psutil

Attack = Callable[[], Awaitable[None]]

LONG = "The sea is wide and the wind is cold. "
QUESTION = "Say something about the sea."


class Hostile:
    """Runs attacks against one gateway, in random order. `statuses` counts the replies by attack and status.

    Args:
        linger_s: how long attacks hold connections that they do not use.
        attack_s: an attack that takes longer is given up: its client leaves.
    """

    def __init__(self, url: str, model: str, seed: int = 2, linger_s: float = 10.0, attack_s: float = 30.0) -> None:
        self._model, self._linger_s, self._attack_s = model, linger_s, attack_s
        self._random = random.Random(seed)
        self.http = httpx.AsyncClient(base_url=url, timeout=attack_s, headers={"User-Agent": "hostile"})
        self.statuses: Counter[str] = Counter()
        message = {"role": "user", "content": LONG * (6_900_000 // len(LONG))}
        self._long_body = json.dumps(self._body({"messages": [message]})).encode()

    @property
    def attacks(self) -> tuple[Attack, ...]:
        return (
            self.bad_schemas,
            self.slow_grammars,
            self.slow_grammar_with_a_limit,
            self.quadratic_grammar,
            self.private_use_message,
            self.long_messages,
            self.many_choices,
            self.many_choices_with_prediction,
            self.flood,
            self.stored_items,
            self.long_role,
            self.deep_json,
            self.slow_body,
            self.unread_stream,
            self.many_small_values,
            self.cancelled_streams,
        )

    async def attack(self) -> None:
        """A random attack."""
        await self.run(self._random.choice(self.attacks))

    async def run(self, attack: Attack) -> None:
        """One attack. It ends after `attack_s` at the latest."""
        with suppress(httpx.HTTPError, TimeoutError, OSError):
            async with asyncio.timeout(self._attack_s):
                await attack()

    # -- what is worked on before the device

    async def bad_schemas(self) -> None:
        for keyword in ("format", "pattern", "required", "properties", "enum", "minimum", "$ref", "anyOf"):
            value: Any = self._random.choice([["date"], {"a": 1}, None, 5, "x", [[]], -1, [None]])
            await self._schema("bad schema", {"type": "string", keyword: value})

    async def slow_grammars(self) -> None:
        """Three at once, each new, and the client leaves at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3), asyncio.TaskGroup() as group:
                for _ in range(3):
                    number = self._random.randrange(1_000_001, 1_000_999, 2)
                    group.create_task(
                        self._schema("slow grammar", {"type": "integer", "multipleOf": number, "maximum": 2**40})
                    )

    async def slow_grammar_with_a_limit(self) -> None:
        schema = {"type": "integer", "multipleOf": self._random.randrange(1_000_001, 1_000_999, 2)}
        await self._schema("slow grammar with a limit", schema, {"x-max-ttft-ms": "4000"})

    async def quadratic_grammar(self) -> None:
        for source in ('start: "' + '\\"' * 25_000, "root ::= " + '("a" | ' * 5_000, "start: /" + "(a|" * 10_000):
            await self._chat("quadratic grammar", {"grammar": source})

    async def private_use_message(self) -> None:
        text = "".join(map(chr, range(0xF0000, 0xFFFFE))) + "<|im_start|>"
        await self._chat("private-use characters", {"messages": [{"role": "user", "content": text}]})
        await self._post("private-use characters", "/tokenize", {"model": self._model, "content": text})

    async def long_messages(self) -> None:
        """Eight chats of 6.9 MB at once."""
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(self._send("long message", "/v1/chat/completions", self._long_body))

    async def long_role(self) -> None:
        await self._chat("long role", {"messages": [{"role": "x" * 7_000_000, "content": "x"}]})

    async def deep_json(self) -> None:
        content = b'{"messages": ' + b"[" * 400_000 + b"]" * 400_000 + b"}"
        await self._send("deep JSON", "/v1/chat/completions", content)

    async def many_small_values(self) -> None:
        await self._chat("many stop strings", {"stop": ["a"] * 100_000})
        messages = [{"role": "user", "content": "x"}] * 50_000
        await self._chat("many messages", {"messages": messages})
        await self._chat("many keys", {"metadata": {f"k{n}": "v" for n in range(50_000)}})

    async def stored_items(self) -> None:
        """Responses with 9,900 items each, then references to them."""
        items = [{"type": "reasoning", "id": f"rs_{n}", "summary": []} for n in range(9_900)]
        question = {"role": "user", "content": QUESTION}
        body = {"model": self._model, "max_output_tokens": 16, "input": [*items, question]}
        await self._post("stored items", "/v1/responses", body)
        references = [{"type": "item_reference", "id": f"rs_{self._random.randrange(20_000)}"} for _ in range(100)]
        await self._post("references", "/v1/responses", body | {"input": [*references, question]})

    # -- what the device works on

    async def many_choices(self) -> None:
        await self._chat("many choices", {"n": 128, "max_tokens": 600})

    async def many_choices_with_prediction(self) -> None:
        text = "".join(self._random.choices(string.ascii_lowercase + " ", k=100_000))
        await self._chat(
            "many choices, prediction", {"n": 128, "max_tokens": 8, "prediction": {"type": "content", "content": text}}
        )

    async def flood(self) -> None:
        """36 long requests at once; the client leaves after a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._linger_s), asyncio.TaskGroup() as group:
                for number in range(36):
                    message = {"role": "user", "content": f"{number} " + LONG * 100}
                    group.create_task(self._chat("flood", {"messages": [message], "max_tokens": 600}))

    async def cancelled_streams(self) -> None:
        for _ in range(20):
            with suppress(httpx.HTTPError):
                async with self.http.stream("POST", "/v1/chat/completions", json=self._body({"stream": True})) as reply:
                    self.statuses[f"cancelled stream: {reply.status_code}"] += 1

    # -- sockets

    async def slow_body(self) -> None:
        """Announce a large body, and send a few bytes of it."""
        writers = [await self._half_a_body() for _ in range(10)]
        await asyncio.sleep(self._linger_s / 2)
        for writer in writers:
            writer.close()

    async def unread_stream(self) -> None:
        """Start streams with 1,000 tokens and read nothing."""
        body = json.dumps(self._body({"stream": True, "max_tokens": 1000})).encode()
        writers = [await self._open(body, len(body)) for _ in range(4)]
        await asyncio.sleep(self._linger_s)
        for writer in writers:
            writer.close()

    async def _half_a_body(self) -> asyncio.StreamWriter:
        return await self._open(b'{"messages": ', 7_000_000)

    async def _open(self, sent: bytes, length: int) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection(self.http.base_url.host, self.http.base_url.port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nUser-Agent: hostile\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode() + sent)
        await writer.drain()
        return writer

    # -- one request

    async def _schema(self, name: str, schema: Any, headers: dict[str, str] | None = None) -> None:
        schema_format = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        await self._post(name, "/v1/chat/completions", self._body({"response_format": schema_format}), headers)

    async def _chat(self, name: str, fields: dict[str, Any]) -> None:
        await self._post(name, "/v1/chat/completions", self._body(fields))

    async def _post(self, name: str, path: str, body: Any, headers: dict[str, str] | None = None) -> None:
        content = await asyncio.to_thread(lambda: json.dumps(body).encode())
        await self._send(name, path, content, headers)

    async def _send(self, name: str, path: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        reply = await self.http.post(
            path, content=content, headers={"Content-Type": "application/json"} | (headers or {})
        )
        self.statuses[f"{name}: {reply.status_code}"] += 1

    def _body(self, fields: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": QUESTION}]
        return {"model": self._model, "messages": messages, "max_tokens": 8, **fields}


async def _run(url: str, model: str, seconds: float, attacks: int) -> Counter[str]:
    hostile, end = Hostile(url, model), time.monotonic() + seconds

    async def repeat() -> None:
        while time.monotonic() < end:
            await hostile.attack()
            await asyncio.sleep(0.1)

    async with hostile.http, asyncio.TaskGroup() as group:
        for _ in range(attacks):
            group.create_task(repeat())
    return hostile.statuses


if __name__ == "__main__":
    psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 10))
    url, model, seconds, attacks = sys.argv[1:]
    print(json.dumps(asyncio.run(_run(url, model, float(seconds), int(attacks)))))
