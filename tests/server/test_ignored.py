"""Fields without effect are in the header `x-gateway-ignored` and in the log."""

from __future__ import annotations

import logging
import tracemalloc
from typing import Any, cast

import httpx
import pytest

from gateway.routes.anthropic_api.wire import MessagesRequest
from gateway.server.ignored import (
    MAX_CAUSES,
    MAX_NOTES,
    IgnoredLog,
    begin_notes,
    note_ignored,
    note_unknown_fields,
)

HEADER = "x-gateway-ignored"
HELLO = [{"role": "user", "content": "Hello"}]


def ignored(http: httpx.Client, path: str, **fields: Any) -> str | None:
    answer = http.post(path, json={"model": "m", **fields})
    assert answer.status_code == 200, answer.text
    return answer.headers.get(HEADER)


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_field_is_in_the_header_with_the_nearest_name(http: httpx.Client, stream: bool) -> None:
    found = ignored(http, "/v1/chat/completions", messages=HELLO, stream=stream, temprature=1, xyz={"a": 1})
    assert found == "temprature (unknown; did you mean temperature?), xyz (not supported)"


@pytest.mark.parametrize(
    ("path", "fields", "found"),
    [
        ("/v1/completions", {"prompt": "a", "best_off": 1}, "best_off (unknown; did you mean best_of?)"),
        ("/v1/responses", {"input": "a", "max_tokens": 9}, "max_tokens (unknown; did you mean max_output_tokens?)"),
        ("/v1/chat/completions", {"messages": HELLO, "extra_body": {"top_k": 1}}, "extra_body (not supported)"),
        ("/v1/responses", {"input": "a", "text": {"xyz": 1}}, "text.xyz (not supported)"),
        ("/api/chat", {"messages": HELLO, "options": {"temprature": 1, "num_ctx": 9}}, "options.temprature"),
        ("/api/generate", {"prompt": "a", "keep_alive": 3, "mirostat": 1}, "mirostat (not supported)"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9, "mcp_servers": [{}]}, "mcp_servers (not supported)"),
        (
            "/v1/messages",
            {"messages": HELLO, "max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            "thinking.budget_tokens (not supported)",
        ),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9, "container": "c"}, "container (not supported)"),
    ],
)
def test_each_api_reports_unknown_fields(http: httpx.Client, path: str, fields: dict[str, Any], found: str) -> None:
    shown = ignored(http, path, stream=False, **fields)
    assert shown is not None and shown.startswith(found)


def test_fields_that_change_no_answer_are_not_reported(http: httpx.Client) -> None:
    fields = {"user": "u", "store": False, "metadata": {"a": "b"}, "unknown": None, "extra": [], "service_tier": "auto"}
    assert ignored(http, "/v1/chat/completions", messages=HELLO, **fields) is None


CALL = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "argumens": "{}"}}]}


@pytest.mark.parametrize(
    ("path", "fields", "found"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a", "contnt": "b"}]}, "messages[0].contnt"),
        ("/v1/chat/completions", {"messages": [*HELLO, CALL]}, "messages[1].tool_calls[0].function.argumens"),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "tools": [{"function": {"name": "f", "paramters": {"type": "object"}}}]},
            "tools[0].function.paramters",
        ),
        ("/v1/responses", {"input": "a", "tools": [{"type": "function", "name": "f", "strct": 1}]}, "tools[0].strct"),
        (
            "/v1/messages",
            {"messages": HELLO, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {}, "descripton": "d"}]},
            "tools[0].descripton",
        ),
        ("/api/chat", {"messages": [{"role": "user", "contnt": "a"}]}, "messages[0].contnt"),
    ],
)
def test_misspelt_field_in_a_list_is_reported(http: httpx.Client, path: str, fields: Any, found: str) -> None:
    shown = ignored(http, path, stream=False, **fields)
    assert shown is not None and shown.startswith(f"{found} (unknown; did you mean ")


def test_own_fields_of_clients_in_messages_are_not_reported_and_a_misspelt_one_once(http: httpx.Client) -> None:
    message = {"role": "user", "content": "a", "id": "m", "createdAt": 1, "cache_control": {"type": "ephemeral"}}
    assert ignored(http, "/v1/chat/completions", messages=[message] * 3) is None
    shown = ignored(http, "/v1/chat/completions", messages=[message | {"contnt": "b"}] * 3)
    assert shown == "messages[0].contnt (unknown; did you mean content?)"


def test_header_is_ascii_and_short_whatever_the_names_are(http: httpx.Client) -> None:
    names = {f"é,\r\n{index}" + "x" * 200: 1 for index in range(300)}
    shown = ignored(http, "/v1/chat/completions", messages=HELLO, **names)
    assert shown is not None and shown.isascii() and shown.isprintable() and len(shown) < 4000
    assert shown.startswith("?;??0xxx") and shown.endswith(f"and {MAX_NOTES - 20} more")


def test_large_body_reports_unknown_fields_too(http: httpx.Client) -> None:
    long = [{"role": "user", "content": "word " * 14_000}]
    answer = http.post("/v1/chat/completions", json={"model": "m", "messages": long, "xyz": 1})
    assert answer.headers[HEADER] == "xyz (not supported)"


def test_nested_content_is_searched_to_a_limit_and_not_copied() -> None:
    text = '{"type":"tool_result","tool_use_id":"a","content":[' * 50 + '{"text":"%s"}' % ("x" * 2**20) + "]}" * 50
    body = ('{"messages":[{"role":"user","content":[' + text + "]}]}").encode()
    begin_notes(cast(Any, {"state": {}}))
    tracemalloc.start()
    try:
        note_unknown_fields(body, MessagesRequest)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < len(body)


def test_each_cause_is_logged_once(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gateway.server.ignored")
    for _ in range(3):
        ignored(http, "/v1/chat/completions", messages=HELLO, logged_once=1)
    assert [record.message for record in caplog.records if record.name == "gateway.server.ignored"] == [
        "a request has a field without effect: logged_once (not supported); the header x-gateway-ignored lists them"
    ]


def test_log_is_bounded_and_joins_indices(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gateway.server.ignored")
    log = IgnoredLog()
    log.write({"tools[1] (web_search)": None, "tools[7] (web_search)": None})
    log.write({f"name{index}": None for index in range(2 * MAX_CAUSES)})
    assert len(caplog.records) == MAX_CAUSES


def test_note_has_the_path_in_brackets_and_outside_a_request_no_effect() -> None:
    note_ignored("tools.1", "web_search")
    scope: Any = {"state": {}}
    begin_notes(scope)
    note_ignored("messages.0.content.12", "image_url")
    note_ignored("messages.0.content.12", "image_url")
    assert list(scope["state"]["ignored"]) == ["messages[0].content[12] (image_url)"]
