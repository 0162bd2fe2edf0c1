"""The page in headless Chromium: the chat, the live view, and what the browser must never do."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.config.tables import (
    BreakerConfig,
    LimitsConfig,
    LocalModel,
    ModelConfig,
    Script,
    ScriptedModel,
    ServerConfig,
)
from gateway.monitoring.usage.history import UsageHistory
from gateway.monitoring.usage.store import UsageStore
from gateway.state.sqlite import SqliteDatabase
from tests.support.browser import Browser, Seen, browser
from tests.support.server import Running, config_of, scripted, serving, wait_until
from tests.support.tiny import build_tiny

HERE = Path(__file__).parent
SCRIPTS = sorted(path.name for path in HERE.glob("*.mjs"))
HELLO = [{"role": "user", "content": "Hello"}]
KEYS = ServerConfig(api_keys={"anna": "sk-anna-1234"})
BREAKER = BreakerConfig(latency_ms=20, token_ms=50, min_calls=1, window=1, probe_itself=False, open_s=3600)


#: What a model may write to attack the page. `hacked` is set if any of it runs.
ATTACKS = (
    "<img src=x onerror='window.hacked=1'><svg onload='window.hacked=2'></svg>",
    "<script>window.hacked=3</script><iframe srcdoc='<script>parent.hacked=4</script>'></iframe>",
    "[link](javascript:window.hacked=5) [link](data:text/html,<script>1</script>) <a href='vbscript:x'>x</a>",
    "![picture](https://evil.example/x.png) <img src='//evil.example/y.png'> <video src='https://evil.example/z'></video>",
    "<style>body{display:none}</style><link rel=stylesheet href='https://evil.example/s.css'>",
    "<base href='//evil.example'>",
    "<form action='https://evil.example'><input name=a><button>Send</button></form>",
    "```html\n<script>window.hacked=6</script>\n```\n```\nnot closed <b>",
    "$$\\href{javascript:window.hacked=7}{x} \\unicode{<script>} \\frac{1}{$$ and $\\rule{1000000em}{1000000em}$",
    "| a | b |\n|---|\n| **not closed [x](y | <details><summary onclick='window.hacked=8'>s</summary>",
    "word" * 20_000,
    "> " * 300 + "deep " + "* " * 300 + "[" * 500 + "](" * 500,
    "<span data-tex='\\href{javascript:window.hacked=10}{x}' data-display='1'>x</span>",
    "<a href='https://example.org' target=_self onmouseover='window.hacked=9'>a link</a> \u202e\u0000\x1b[31mtext",
)
MARKDOWN = (
    "# Title\n\n**bold** and *soft*\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    "$e^{i\\pi} + 1 = 0$\n\n```python\ndef f(x):\n    return x + 1\n```\n"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(HERE, SCRIPTS, tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a small model that can write for more than a minute."""
    return build_tiny(tmp_path_factory.mktemp("endless"), context=32_768, layers=12)


@pytest.fixture(scope="module")
def server(chromium: Browser, endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway whose log has every level, as `serve` sets it."""
    models: dict[str, ModelConfig] = {
        "paris": scripted("The capital of France is Paris."),
        "capital": scripted("The capital of France is Paris."),
        "device": LocalModel(path=str(endless), threads=1, max_sequences=1, max_tokens="context", prefix_cache=False),
        "endless": ScriptedModel(
            max_tokens="context",
            script=Script(replies=("word",), repeat=True, token_s=0.02, context_length=100_000),
        ),
        "hostile": scripted(*ATTACKS, prompt_tokens=1, context_length=100_000),
        "markdown": scripted(MARKDOWN),
        "numbered": scripted("Answer one.", "Answer two.", "Answer three."),
        "slow": ScriptedModel(script=Script(ttft_s=0.05), breaker=BREAKER),
        "broken": scripted("a", load_error="The bundle is broken."),
    }
    logger = logging.getLogger("gateway")
    level = logger.level
    logger.setLevel(logging.INFO)
    history = UsageHistory(UsageStore(SqliteDatabase(tmp_path_factory.mktemp("usage") / "state.sqlite"), 30))
    with serving(config_of(models), usage=history) as running:
        yield running
    logger.setLevel(level)


@pytest.fixture(scope="module")
def keyed(chromium: Browser) -> Iterator[Running]:
    limits = LimitsConfig(requests_per_minute=60, concurrent_requests=2)
    with serving(config_of({"paris": scripted("Paris.")}, KEYS, limits=limits)) as running:
        yield running


def run(chromium: Browser, script: str, server: Running, args: Any = None, **context: Any) -> Any:
    """The value of a script. No request may leave the gateway, and no error may come up."""
    seen = chromium.run(script, server.url, args, **context)
    assert_clean(seen, server)
    return seen.value


def assert_clean(seen: Seen, server: Running, expected: str = r"(?!)") -> None:
    origins = {"{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in seen.requests if not url.startswith("data:")}
    assert origins == {server.url}
    assert [error for error in seen.errors if not re.search(expected, error)] == []


class TestChat:
    @pytest.mark.parametrize("model", ["endless", "device"])
    def test_answer_streams_and_stop_stops_the_device(self, chromium: Browser, server: Running, model: str) -> None:
        seen = run(chromium, "chat.stream", server, {"model": model, "ignoreEnd": model == "device"})
        lengths = seen["lengths"]
        assert len(lengths) == 5 and lengths == sorted(set(lengths)), "each state is longer than the one before"
        assert seen["isBusy"] == "true" and "You stopped this answer." in seen["note"]
        with server.http() as http:
            wait_until(lambda: _lane(http, model)["running"] == 0, "the request still runs")
            [*_, answer] = [each for each in http.get("/gateway/live").json()["answers"] if each["model"] == model]
        assert answer["ending"] == "cancelled"
        assert 0 < answer["completion_tokens"] < 30_000

    def test_markdown_code_and_maths_are_rendered(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat.markdown", server, {"model": "markdown"})
        assert (seen["strong"], seen["items"], seen["cells"], seen["code"]) == (1, 2, 2, 1)
        assert "```" not in seen["text"] and "**" not in seen["text"]

    def test_hostile_answers_run_nothing_and_request_nothing(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat.hostile", server, {"model": "hostile", "count": len(ATTACKS)})
        assert (seen["tags"], seen["handlers"], seen["links"], seen["hacked"]) == ([], [], [], None)
        assert seen["width"] <= 0, "the page has no horizontal scroll bar"
        assert seen["rels"] and all("noopener" in rel and "_blank" in rel for rel in seen["rels"])
        assert "npu-gateway" in seen["title"]

    def test_conversation_survives_a_reload_and_has_versions(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat.conversation", server, {"model": "numbered"})
        [first], [second] = seen["reloaded"][1], seen["second"]
        assert seen["reloaded"][0] == ["First question"] and first.startswith("Answer")
        assert second != first and seen["again"] == ["2 / 2"] and seen["previous"] == [first]
        assert seen["edited"][0] == ["Other question"] and seen["edited"][1] not in ([first], [second])

    def test_text_file_is_sent_and_picture_is_refused(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat.attachment", server, {"model": "device", "text": "The password is swordfish."})
        assert "picture.png is not a text file" in seen["refused"]
        assert "The password is swordfish." in seen["sent"] and "notes.txt" in seen["sent"]
        assert seen["shown"] == ["notes.txt"]

    def test_refusal_of_the_breaker_is_explained(self, chromium: Browser) -> None:
        with serving(config_of({"m": ScriptedModel(script=Script(ttft_s=0.05), breaker=BREAKER)})) as server:
            seen = chromium.run("chat.refused", server.url, {"model": "m"})
        assert_clean(seen, server, expected="status of 503")
        assert "too slow at the moment" in seen.value["note"] and "m is too slow" in seen.value["note"]


class TestChatState:
    def test_damaged_storage_leaves_what_can_be_shown(self, chromium: Browser, server: Running) -> None:
        seen = chromium.run("chat_state.damaged", server.url, {"model": "capital"})
        assert_clean(seen, server, expected="status of 404")
        assert seen.value["shown"] == ["Left over."] and seen.value["answer"] == "The capital of France is Paris."
        assert "Choose another model" in seen.value["note"]

    def test_full_or_missing_storage_is_said_and_answers_come(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat_state.unkept", server, {"model": "capital"})
        full, missing = seen["notices"]
        assert "storage is full" in full and "does not keep" in missing
        assert seen["answers"] == ["The capital of France is Paris."] * 2

    def test_two_tabs_share_a_conversation(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat_state.tabs", server, {"model": "capital"})
        assert seen == {"shown": ["From the first tab", "From the second tab", "From the first tab again"], "left": 0}

    def test_lost_answer_is_kept_and_tried_again(self, chromium: Browser, server: Running) -> None:
        seen = chromium.run("chat_state.lost", server.url, {"model": "endless"})
        assert_clean(seen, server, expected="net::ERR_INTERNET_DISCONNECTED")
        assert "This answer is not complete" in seen.value["note"]
        assert "The connection to the gateway is lost" in seen.value["alert"]
        assert seen.value["versions"] == ["3 / 3"]

    def test_cut_answer_goes_on_in_the_same_message(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat_state.cut", server, {"model": "endless", "limit": 3})
        assert seen["text"] == "word" * 3 and "cut after 3 tokens, its limit" in seen["note"]
        assert seen["after"] == ["word" * 6] and seen["versions"] == 0
        first, second = seen["bodies"]
        assert first["max_tokens"] == 3 and "temperature" not in first
        assert [message["role"] for message in first["messages"]] == ["system", "user"]
        assert second["messages"][2:] == [{"role": "assistant", "content": "word" * 3}]

    def test_exported_conversations_can_be_imported(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat_state.transfer", server)
        assert "chats.json has no conversations" in seen["refused"]
        reasoning, call = seen["folded"]
        assert reasoning == [False, "ReasoningA tool is needed."]
        assert call == [False, 'Tool call: weather{ "city": "Oslo" }']
        assert seen["titles"] == ["Forecast", "Forecast"]
        assert [each["title"] for each in seen["exported"]["conversations"]] == ["Forecast"]

    def test_keys_write_send_and_stop(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "chat_state.keys", server, {"model": "endless"})
        assert (seen["composed"], seen["draft"], seen["sent"]) == (0, "one\ntwo", ["one\ntwo"])
        assert "您停止了这个回答。" in seen["note"]


def _lane(http: httpx.Client, model: str) -> dict[str, Any]:
    [lane] = [each for each in http.get("/gateway/live").json()["models"] if each["model"] == model]
    return dict(lane)


class TestLive:
    def test_plot_is_drawn_and_table_has_the_values(self, chromium: Browser, server: Running) -> None:
        with server.http() as http:
            for model in ("slow", "paris", "nowhere"):
                http.post("/v1/chat/completions", json={"model": model, "messages": HELLO})
            answers = http.get("/gateway/live").json()["answers"]
        seen = run(chromium, "live.plots", server)
        for canvas in seen["canvases"]:
            drawn = {name: canvas["colours"].get(colour, 0) for name, colour in seen["colours"].items()}
            assert all(count > 4 for count in drawn.values()), "values, limit and slow answers are drawn"
            assert "answers: median" in canvas["label"]
        assert len(seen["rows"]) == len(answers)
        newest, second, third = seen["rows"][:3]
        assert newest[1] == "nowhere" and "model_not_found" in newest
        assert second[1] == "paris" and "complete" in second
        assert third[1] == "slow" and "slow, complete" in third
        assert third[3] == "20 ms" and third[5] == "50 ms"

    def test_opening_of_the_breaker_is_shown_in_words(self, chromium: Browser) -> None:
        with serving(config_of({"m": ScriptedModel(script=Script(ttft_s=0.05), breaker=BREAKER)})) as server:
            seen = run(chromium, "live.breaker", server, {"model": "m"})
        assert seen["statuses"] == [200, 503]
        assert "closed, requests are answered" in seen["before"]
        assert re.search(r"open, requests are refused.*next try in [\d,]+ s", seen["after"])
        assert "the limit was 0.02 s" in seen["after"] or "within 0.02 s" in seen["after"]
        assert seen["icons"] == 1
        assert "m: Circuit breaker: open, requests are refused" in seen["announced"]

    def test_key_is_asked_for_and_kept_in_the_tab(self, chromium: Browser, keyed: Running) -> None:
        seen = chromium.run("live.key", keyed.url, {"wrong": "sk-wrong", "right": "sk-anna-1234"})
        assert_clean(seen, keyed, expected="status of 401")
        assert "does not accept this key" in seen.value["refused"]
        assert seen.value["dialogs"] == 0
        assert seen.value["limits"] == ["anna", "0 of 60", "0", "0 of 2"]
        assert seen.value["kept"] == ['"sk-anna-1234"', None], "in the storage of the tab, not in that of the browser"

    def test_user_without_key_gets_the_reason(self, chromium: Browser, keyed: Running) -> None:
        seen = chromium.run("live.noKey", keyed.url, {"right": "sk-anna-1234"})
        assert_clean(seen, keyed, expected="status of 401")
        assert "API key" in seen.value["note"] and seen.value["isHidden"]

    def test_gateway_that_is_away_is_tried_again(self, chromium: Browser, server: Running) -> None:
        seen = chromium.run("live.away", server.url)
        assert_clean(seen, server, expected="net::ERR_FAILED")
        assert seen.value["waits"] == ["The gateway does not answer. Next try in 2 s."]
        announced = seen.value["announced"]
        assert announced[:1] + announced[-1:] == ["The gateway does not answer.", "The gateway answers again."]

    def test_values_of_a_gateway_that_ended_are_gone(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "live.restart", server)
        assert seen["models"] == ["start-2"] * 3
        assert seen["polls"] == [[2, 41], [2, 0]]

    def test_log_has_filter_and_pause(self, chromium: Browser, server: Running) -> None:
        seen = run(chromium, "live.log", server)
        assert 0 < seen["paused"] == seen["still"] and set(seen["levels"]) <= {"WARNING", "ERROR"}

    def test_model_is_unloaded_and_loaded_by_its_button(self, chromium: Browser, server: Running) -> None:
        seen = chromium.run("live.load", server.url, {"model": "device", "broken": "broken"})
        assert_clean(seen, server, expected="status of 503")
        assert "The bundle is broken." in seen.value["error"]
        assert {"device is unloaded.", "device is loaded."} <= set(seen.value["announced"])

    def test_usage_of_the_last_days_is_shown(self, chromium: Browser, server: Running) -> None:
        with server.http() as http:
            http.post("/v1/chat/completions", json={"model": "paris", "messages": HELLO})
            report = http.get("/gateway/usage").json()
        rows = run(chromium, "live.usage", server)
        assert len(rows) == len(report["by_day"]) + len(report["by_model"])
        [paris] = [row for row in rows if row[0] == "paris"]
        [expected] = [each for each in report["by_model"] if each["name"] == "paris"]
        assert paris[1] == str(expected["requests"]) and paris[7] == str(expected["completion_tokens"])

    def test_view_that_is_not_shown_does_not_poll(self, chromium: Browser, server: Running) -> None:
        assert run(chromium, "live.hidden", server) == {"more": 0}


class TestAccessibility:
    def test_live_view_has_no_violation(self, chromium: Browser, server: Running) -> None:
        with server.http() as http:
            http.post("/v1/chat/completions", json={"model": "paris", "messages": HELLO})
        assert run(chromium, "both.axeLive", server) == []

    def test_chat_has_no_violation(self, chromium: Browser, server: Running) -> None:
        seen = chromium.run("both.axeChat", server.url, {"model": "markdown", "refusing": "broken"})
        assert_clean(seen, server, expected="status of 503")
        assert seen.value == []

    def test_dialogs_have_no_violation(self, chromium: Browser, server: Running) -> None:
        assert run(chromium, "both.axeDialogs", server) == []
