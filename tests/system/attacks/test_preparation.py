"""Attacks on the preparation of prompts: no chat, text, template or tokenizer file harms another client.

One gateway has two models: `tiny`, and `hostile`, whose chat template and tokenizer have attacks for some words.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.config.file import load_config
from gateway.config.tables import ServerConfig
from gateway.engines.local import prompt_process
from tests.engines.local.test_prompt_process import HOSTILE
from tests.support.processes import PATIENCE_S, Serving, serving
from tests.support.server import config_of, wait_until
from tests.support.server import serving as in_process

STOP = signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM
TEMPLATE_ATTACKS = ["spin", "compare", "format", "slices"]
#: The gateway with a second of processor time for a long prompt instead of five.
QUICK_LIMIT = """
from gateway.cli import main
from gateway.engines.local import prompt_process
prompt_process.LIMITS = prompt_process.LIMITS._replace(cpu_s=1, wall_s=3600)
raise SystemExit(main())
"""
MAX_GROWTH = 50 << 20  # bytes of the gateway process
SIZE = 6_900_000
#: A regular expression that takes exponential time for a text of one letter.
PATHOLOGICAL = {"type": "Split", "pattern": {"Regex": "(?:z|zz)+y|\\d"}, "behavior": "Isolated", "invert": False}


def config(tiny: Path, folder: Path) -> Path:
    hostile = folder / "hostile"
    shutil.copytree(tiny, hostile)
    (hostile / "hashes.json").unlink(missing_ok=True)
    settings = hostile / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_bytes()) | {"chat_template": HOSTILE}), encoding="utf-8")
    tokenizer = hostile / "tokenizer.json"
    content = json.loads(tokenizer.read_bytes())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [PATHOLOGICAL, content["pre_tokenizer"]]}
    tokenizer.write_text(json.dumps(content), encoding="utf-8")
    models = "".join(f"[models.{path.name}]\npath = {json.dumps(str(path))}\nthreads = 1\n" for path in (hostile,))
    models += f"[models.tiny]\npath = {json.dumps(str(tiny))}\nthreads = 1\n"
    path = folder / "config.toml"
    path.write_text(models, encoding="utf-8")
    return path


class Gateway:
    """A gateway process, a client with the attacks, and another client."""

    def __init__(self, running: Serving) -> None:
        self.running = running
        greeting = running.read_greeting()
        url = greeting.split(" on ")[1].split()[0].removesuffix("/v1")
        self.process = psutil.Process(running.process.pid)
        self.attacker = httpx.Client(base_url=url, timeout=PATIENCE_S, headers={"user-agent": "attacker"})
        self.other = httpx.Client(base_url=url, timeout=PATIENCE_S, headers={"user-agent": "other"})
        for model in ("tiny", "hostile"):
            assert self.answer(model) == 200
        self.resident = self.process.memory_info().rss
        self.pids = {child.pid for child in self.process.children(recursive=True)}

    def answer(self, model: str = "tiny") -> int:
        """The status of a one-token request of the other client."""
        return self.other.post("/v1/chat/completions", json=chat("Hello", model)).status_code

    def attack(self, path: str, body: Any) -> httpx.Response:
        return self.attacker.post(path, json=body)

    def refused(self, path: str, body: Any) -> str:
        """The code of a 400."""
        response = self.attack(path, body)
        assert response.status_code == 400, response.text[:500]
        assert len(response.content) < 1000
        error = response.json()["error"]
        return str(error.get("code") or error["message"] if isinstance(error, dict) else error)

    def close(self) -> None:
        self.attacker.close()
        self.other.close()

    def settles(self, growth: int = MAX_GROWTH) -> bool:
        """True when the memory of the process is what it was before, with some tolerance."""
        return is_soon(lambda: self.process.memory_info().rss - self.resident < growth)


@pytest.fixture(scope="module")
def gateway(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("preparation")
    program = ("-c", QUICK_LIMIT)
    with serving("--config", config(tiny, folder), "--port", 0, cwd=folder, program=program) as running:
        gateway = Gateway(running)
        yield gateway
        assert gateway.answer() == 200
        assert gateway.settles(2 * MAX_GROWTH)  # after all attacks
        gateway.close()
        code, log = running.stop(STOP)
    assert code == 0
    assert " ERROR " not in log


def is_soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def chat(content: str, model: str = "tiny", **fields: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": content}], **fields}


@pytest.mark.parametrize("attack", TEMPLATE_ATTACKS)
def test_template_over_a_limit_is_400_and_others_are_answered(attack: str, gateway: Gateway) -> None:
    with ThreadPoolExecutor(1) as pool:
        refusal = pool.submit(gateway.refused, "/v1/chat/completions", chat(attack, "hostile"))
        assert [gateway.answer(model) for model in ("tiny", "hostile") * 3] == [200] * 6
        assert refusal.result()
    assert gateway.settles()
    for path in ("/apply-template", "/v1/messages/count_tokens", "/tokenize"):
        if attack == "format":
            assert gateway.refused(path, chat(attack, "hostile"))


def test_pathological_tokenizer_is_400_and_others_are_answered(gateway: Gateway) -> None:
    with ThreadPoolExecutor(1) as pool:
        refusal = pool.submit(gateway.attack, "/v1/completions", {"model": "hostile", "prompt": "z" * 2000})
        assert [gateway.answer() for _ in range(3)] == [200] * 3
        assert refusal.result().status_code in (200, 400)


def test_eight_chats_of_6_9_mb_are_refused_by_length(gateway: Gateway) -> None:
    with ThreadPoolExecutor(8) as pool:
        body = chat("Hello " * (SIZE // 6))
        replies = pool.map(lambda _: gateway.attack("/v1/chat/completions", body), range(8))
        assert [gateway.answer() for _ in range(3)] == [200] * 3
        codes = [reply.json()["error"]["code"] for reply in replies]
    assert "context_length_exceeded" in codes
    assert set(codes) <= {"context_length_exceeded", "service_unavailable"}  # 503: the memory of this client's bodies
    assert gateway.settles()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x" * SIZE}),
        ("/v1/completions", {"prompt": ["x", "y" * SIZE]}),
        ("/v1/completions", {"prompt": "x" * SIZE, "echo": True}),
        ("/v1/completions", {"prompt": [[1] * 100_000]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x" * SIZE}], "max_tokens": 1}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x" * SIZE}]}),
        ("/v1/responses", {"input": "x" * SIZE}),
        ("/api/generate", {"prompt": "x" * SIZE}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x" * SIZE}]}),
        ("/tokenize", {"content": "x" * SIZE}),
        ("/tokenize", {"messages": [{"role": "user", "content": "\U0001f600" * 1_000_000}]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x" * SIZE}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 700}] * 9_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 100_000}),
        ("/v1/chat/completions", chat("x", chat_template_kwargs={"a": json.loads("[" * 900 + "]" * 900)})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_long_text_is_refused_on_every_endpoint(path: str, body: dict[str, Any], gateway: Gateway) -> None:
    assert gateway.refused(path, {"model": "tiny", **body})
    assert gateway.settles()


def test_suffix_of_6_9_mb_is_refused(gateway: Gateway) -> None:
    assert gateway.refused("/v1/completions", {"model": "tiny", "prompt": "x", "suffix": "y" * SIZE})


def test_prediction_of_6_9_mb_is_cut(gateway: Gateway) -> None:
    body = chat("x", prediction={"type": "content", "content": "Hello " * (SIZE // 6)})
    assert gateway.attack("/v1/chat/completions", body).status_code in (200, 400)
    assert gateway.settles()


def test_token_ids_to_decode_are_bounded_in_memory(gateway: Gateway) -> None:
    response = gateway.attack("/detokenize", {"model": "tiny", "tokens": [300] * 1_500_000})
    assert response.status_code in (200, 400)
    assert gateway.answer() == 200


def test_huge_tools_are_answered_or_refused(gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(15)}}
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 4000, "parameters": schema}}
    tools = [{**tool, "function": {**tool["function"], "name": f"f{i}"}} for i in range(1000)]
    for path in ("/v1/chat/completions", "/tokenize", "/apply-template"):
        assert gateway.attack(path, chat("x", tools=tools)).status_code in (200, 400)
    assert gateway.answer() == 200


def test_ollama_template_and_context_are_harmless(gateway: Gateway) -> None:
    body = {"model": "tiny", "prompt": "x", "template": HOSTILE, "context": [1] * 100_000, "stream": False}
    assert gateway.attack("/api/generate", body | {"options": {"num_predict": 1}}).status_code in (200, 400)


@pytest.mark.parametrize("plane", [0xF, 0x10])
@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions", "/apply-template"])
def test_all_private_use_characters_and_a_special_token_are_no_fault(path: str, plane: int, gateway: Gateway) -> None:
    """Too long for this model as a whole; a part of it fits."""
    characters = "".join(chr(plane << 16 | code) for code in range(0xFFFE))
    assert gateway.refused(path, chat(f"{characters}<|im_end|>")) == "context_length_exceeded"
    assert gateway.attack(path, chat(f"{characters[:50]}<|im_end|>{characters[-2:]}")).status_code == 200


def test_gateway_stops_while_a_template_runs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the template are longer than the server may take to stop."""
    limits = prompt_process.LIMITS._replace(cpu_s=2 * PATIENCE_S, wall_s=2 * PATIENCE_S)
    monkeypatch.setattr(prompt_process, "LIMITS", limits)
    model = load_config(config(tiny, tmp_path), {}).models["hostile"]
    before = set(psutil.Process().children(recursive=True))
    with in_process(config_of({"hostile": model}, ServerConfig(shutdown_grace_s=0.1))) as server:
        sandbox = server.app.state.router.lanes["hostile"].engine._engine._engine._prompts._process._long.sandbox
        with server.http() as client, ThreadPoolExecutor(1) as pool:
            reply = pool.submit(client.post, "/v1/chat/completions", json=chat("compare", "hostile"))
            wait_until(lambda: sandbox.pid and cpu_s(sandbox.pid) > 1, "the template does not run")
            assert not reply.done()
            children = [child for child in psutil.Process().children(recursive=True) if child not in before]
            server.stop()
            assert not isinstance(reply.exception(PATIENCE_S), httpx.TimeoutException)
    assert sandbox.pid in [child.pid for child in children]
    left = psutil.wait_procs([child for child in children if not is_tracker(child)], PATIENCE_S)[1]
    assert left == []


def is_tracker(process: psutil.Process) -> bool:
    """Python's own process, which lives as long as the tests."""
    with suppress(psutil.NoSuchProcess):
        return "resource_tracker" in str(process.cmdline())
    return False


def cpu_s(pid: int) -> float:
    return float(sum(psutil.Process(pid).cpu_times()[:2]))
