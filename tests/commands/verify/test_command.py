"""`npu-gateway verify`: the whole command against a good server, a bad one, none, and the gateway itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from gateway import cli
from gateway.commands.verify import answers, command
from gateway.commands.verify.peer import Peer
from gateway.config.tables import LocalModel
from tests.support.paths import ROOT
from tests.support.server import config_of, serving
from tests.support.verify_gateway import Answer, serve_answers


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["verify", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_good_model_passes_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_answers() as url:
        code, out, err = verify(capsys, "--url", url)
    lines = out.splitlines()
    assert (code, err, lines[0]) == (0, "", f"good at {url}")
    assert lines[-2].startswith("tools 20/20, JSON 10/10, stop 4/4, reasoning 3/3, system 3/3, turns 3/3, usage 5/5, ")
    assert lines[-1] == "This model calls tools reliably." and not any(line.startswith("  ") for line in lines)


def test_wrong_model_is_no_failure_and_a_wrong_gateway_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def dull(body: dict[str, Any], path: str, answer: Answer) -> None:
        if body.get("tool_choice", "auto") == "auto" and body.get("tools"):
            answer.text, answer.calls, answer.finish = "No.", [], "stop"

    def faulty(body: dict[str, Any], path: str, answer: Answer) -> None:
        answer.usage = (1, 1, 1)

    with serve_answers(dull) as url:
        code, out, _ = verify(capsys, "--url", url, "--json")
    report = json.loads(out)
    assert code == 0 and report["api_ok"] and report["verdict"].startswith("Do not use this model for agents: 14 of 20")
    with serve_answers(faulty) as url:
        code, out, _ = verify(capsys, "good", "--url", url)
    assert code == 1 and "usage 0/5" not in out and "The gateway itself is wrong in" in out


def test_model_that_reasons_has_tokens_to_spare(capsys: pytest.CaptureFixture[str]) -> None:
    def thinker(body: dict[str, Any], path: str, answer: Answer) -> None:
        answer.reasoning = "Let me think." if path == "chat/completions" else ""
        limit = next(body[name] for name in ("max_tokens", "max_output_tokens") if name in body)
        if 1000 > limit > 1 and answer.status == 200:
            answer.text, answer.calls, answer.finish = "", [], "length"
            answer.usage = (answer.usage[0], limit, answer.usage[0] + limit)

    with serve_answers(thinker) as url:
        code, out, _ = verify(capsys, "--url", url.removesuffix("/v1"))
    assert code == 0 and "tools 20/20, JSON 10/10, stop 4/4, reasoning 3/3" in out and "sessions 12/12" in out


def test_ability_that_a_model_lacks_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_answers(capabilities=["chat"], context_length=0) as url:
        code, out, _ = verify(capsys, "--url", url)
    assert code == 0 and "tools -, JSON -, stop 4/4" in out and "context 1/1" in out
    assert out.endswith("This model has no tools: use it for chats, not for agents.\n")


def test_server_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = verify(capsys, "--url", "http://127.0.0.1:1/v1")
    assert code == 1 and err.startswith("npu-gateway: no server answers at http://127.0.0.1:1; start one with")
    with serve_answers() as url:
        code, _, err = verify(capsys, "other", "--url", url)
    assert code == 1 and err == "npu-gateway: The gateway has no model 'other'. It has: good.\n"


@pytest.mark.parametrize("listed", ["<html>", '["a"]', '{"data": [{"name": "a"}]}'])
def test_server_of_another_kind_is_one_line(listed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_answers(listed=listed) as url:
        code, out, err = verify(capsys, "--url", url)
    assert (code, out) == (1, "") and err.startswith(f"npu-gateway: the server at {url}/ does not list models")


def test_model_that_is_not_ready_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def loading(body: dict[str, Any], path: str, answer: Answer) -> None:
        answer.status, answer.code = 503, "model_not_ready"

    with serve_answers(loading) as url:
        assert verify(capsys, "--url", url) == (1, "", "npu-gateway: model_not_ready\n")


def test_breaker_that_opens_is_waited_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("gateway.commands.verify.peer.sleep", waits.append)
    seen: set[tuple[str, int]] = set()

    def opening(body: dict[str, Any], path: str, answer: Answer) -> None:
        kind = (path, answer.status)
        if kind not in seen:
            seen.add(kind)
            answer.status, answer.code, answer.retry_after = 503, "breaker_open", "7"

    with serve_answers(opening) as url:
        code, out, _ = verify(capsys, "--url", url)
    assert (code, waits) == (0, [7.0] * 4) and "context 2/2" in out and "sessions 12/12" in out


def test_results_are_printed_if_the_gateway_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("gateway.commands.verify.peer.sleep", waits.append)

    def ending(body: dict[str, Any], path: str, answer: Answer) -> None:
        if body.get("response_format"):
            answer.status, answer.code, answer.retry_after = 503, "breaker_open", "60"

    with serve_answers(ending) as url:
        code, out, err = verify(capsys, "--url", url)
        _, report, _ = verify(capsys, "--url", url, "--json")
    assert (code, err, waits) == (1, "", [60.0] * 6)
    assert out.endswith("tools 20/20\nNot complete: the checks stopped after 20: breaker_open. Try again in 60 s.\n")
    assert json.loads(report)["stopped"] == "breaker_open. Try again in 60 s." and not json.loads(report)["api_ok"]


def test_gateway_does_its_part_with_a_model_of_no_use(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model has random weights: whatever it writes, the API must be kept."""
    monkeypatch.setattr("gateway.commands.verify.peer.MAX_TOKENS", 24)
    monkeypatch.setattr("gateway.commands.verify.sessions._MAX_TOKENS", 16)
    monkeypatch.setitem(answers._LONG, "max_tokens", 24)
    with serving(config_of({"m": LocalModel(path=str(tiny), provider="cpu")})) as server:
        code, out, _ = verify(capsys, "--url", f"{server.url}/v1", "--json")
    report = json.loads(out)
    assert [check for check in report["checks"] if check["outcome"] == "gateway"] == [] and code == 0
    assert len(report["checks"]) == len(list(command.all_checks(Peer(OpenAI(api_key="x"), "m"))))


def test_every_group_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = text[text.index("## What works with a model") :].partition("\n## ")[0]
    peers = (Peer(OpenAI(api_key="x"), "m", capabilities=each) for each in (None, ("embeddings",), ("rerank",)))
    groups = {check.group for peer in peers for check in command.all_checks(peer)}
    assert {group for group in groups if group not in table} == set()
    shown = table.partition("```text")[2]
    assert all(f"{group} " in shown for group in groups)
