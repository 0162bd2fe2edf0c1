"""Every field of every endpoint, with what fits it and what does not.

Whatever is sent: a success, or a refusal in the endpoint family's own shape. Never a failure of ours, a hang, or an
error in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Litestar
from msgspec import Struct
from msgspec import inspect as types

from gateway.app import create_app
from gateway.config import LocalModel
from gateway.routes.anthropic_api.wire import CountTokensRequest, MessagesRequest
from gateway.routes.ollama_api.wire import OllamaChatRequest, OllamaGenerateRequest, ShowRequest
from gateway.routes.openai_api.embeddings import EmbeddingRequest
from gateway.routes.openai_api.wire import ChatRequest
from gateway.routes.openai_api.wire_completions import CompletionRequest
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.routes.tokenize import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from tests.support.server import config_of, scripted

PATIENCE_S = 120.0  # for a machine that does other things
EXAMPLES = 6  # of a field; one within another gets half as many
Words = Literal["openai", "ollama", "anthropic"]
Step = str | int


class Door(Struct, frozen=True):
    """An endpoint, what it takes, and the least that it is content with."""

    path: str
    takes: type
    body: dict[str, Any]
    words: Words = "openai"


TURN = [{"role": "user", "content": "x"}]
DOORS = {
    "chat": Door("/v1/chat/completions", ChatRequest, {"model": "m", "messages": TURN}),
    "completions": Door("/v1/completions", CompletionRequest, {"model": "m", "prompt": "x"}),
    "responses": Door("/v1/responses", ResponsesRequest, {"model": "m", "input": "x"}),
    "messages": Door("/v1/messages", MessagesRequest, {"model": "m", "max_tokens": 2, "messages": TURN}, "anthropic"),
    "ollama chat": Door("/api/chat", OllamaChatRequest, {"model": "m", "messages": TURN}, "ollama"),
    "ollama generate": Door("/api/generate", OllamaGenerateRequest, {"model": "m", "prompt": "x"}, "ollama"),
    "ollama show": Door("/api/show", ShowRequest, {"model": "m"}, "ollama"),
    "embeddings": Door("/v1/embeddings", EmbeddingRequest, {"model": "m", "input": "x"}),
    # with a template, a tokenizer, a sampler and a grammar compiler
    "real chat": Door("/v1/chat/completions", ChatRequest, {"model": "tiny", "messages": TURN, "max_tokens": 2}),
    "real completions": Door("/v1/completions", CompletionRequest, {"model": "tiny", "prompt": "x", "max_tokens": 2}),
    "count_tokens": Door(
        "/v1/messages/count_tokens", CountTokensRequest, {"model": "tiny", "messages": TURN}, "anthropic"
    ),
    "tokenize": Door("/tokenize", TokenizeRequest, {"model": "tiny", "content": "x"}),
    "detokenize": Door("/detokenize", DetokenizeRequest, {"model": "tiny", "tokens": [65]}),
    "apply-template": Door("/apply-template", ApplyTemplateRequest, {"model": "tiny", "messages": TURN}),
}
#: What the least of these must be for its other fields to be looked at.
FITTING: dict[str, dict[str, Any]] = {
    "ContentPart": {"type": "text", "text": "x"},
    "InputPart": {"type": "input_text", "text": "x"},
    "ToolDefinition": {"type": "function", "function": {"name": "f"}},
    "ResponseTool": {"type": "function", "name": "f"},
    "NamedChoice": {"type": "function", "function": {"name": "f"}},
    "JsonSchema": {"name": "s", "schema": {"type": "object"}},
    "ResponseFormat": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}, "name": "s", "schema": {}},
    "ContentBlock": {"type": "text", "text": "x"},
    "InputItem": {"role": "user", "content": "x"},
    "OutputFormat": {"type": "json_schema", "schema": {"type": "object"}},
}


# ---- what is sent


class Raw(str):
    """JSON as it stands, which Python's own encoder would not write."""


RAW = ("NaN", "-Infinity", "1e999", "-0", "01", "1.", '"\\ud800"', '"\\udc00\\ud800"', '{"a":1,"a":2}', "-", '"\t"', "")
DEEP: Any = 1
for _ in range(80):
    DEEP = {"a": [DEEP]}
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400),
    *(1e308, -1e308, 5e-324, -0.0, 0.1, 1.5),
    *("", " ", "\0", "\n", "a" * 5_000, "é\u2028\u202e👩\u200d👩\u200d👧", "\ufeff", "\ufffe"),
    *("<|im_start|>system", "<tool_call>", "{{ 7 * 7 }}", "{% for x in y %}", "%s%n", "../../etc/passwd", "$ref"),
    *([], {}, [[]], [None], [{}], ["a"] * 100, [0] * 100, {"": None}, {"a": 1}, {"\0": {"é": [[]]}}, DEEP),
    *({"a": 10**400}, {"type": "integer", "maximum": 10**30}, {"enum": [2**64]}),
    *({"type": "object"}, {"type": "text"}, {"type": "function", "function": {"name": "f"}}, {"$ref": "#"}),
    *({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, {"type": "x" * 1000}, {"name": "f", "type": "f"}),
    *(Raw(text) for text in RAW),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def plain(type_: types.Type) -> types.Type:
    while isinstance(type_, types.Metadata):
        type_ = type_.type
    return type_


def fitting(type_: types.Type, depth: int = 3) -> st.SearchStrategy[Any]:
    """Values of the type, its limits mostly kept."""
    match plain(type_):
        case types.StructType() as struct if depth:
            return st.builds(
                lambda given, base: base | given,
                st.fixed_dictionaries(
                    {}, optional={each.encode_name: fitting(each.type, depth - 1) for each in struct.fields}
                ),
                st.just(least(struct)),
            )
        case (
            types.ListType(item_type=item, min_length=shortest)
            | types.VarTupleType(item_type=item, min_length=shortest)
        ):
            return st.lists(fitting(item, depth), min_size=shortest or 0, max_size=3)
        case types.DictType(key_type=key, value_type=value):
            keys = fitting(key, depth).map(str)
            return st.dictionaries(keys, fitting(value, depth), max_size=3)
        case types.UnionType(types=kinds):
            return st.one_of([fitting(kind, depth) for kind in kinds])
        case types.LiteralType(values=values):
            return st.sampled_from(values)
        case types.BoolType():
            return st.booleans()
        case types.IntType(ge=low, le=high):
            low = -(2**63) if low is None else low
            return st.sampled_from([low, low + 1, high or 2**31, 1, 2, 7]) | st.integers(low, high or 2**40)
        case types.FloatType(ge=low, gt=above, le=high):
            bottom = low if low is not None else above if above is not None else -1e9
            return st.floats(bottom, high if high is not None else 1e9, exclude_min=low is None and above is not None)
        case types.StrType(pattern=str()):
            return st.sampled_from(["f", "get_weather", "a" * 64])
        case types.StrType():
            return st.text(max_size=12) | st.sampled_from(["f", "m", "text", "function", "message", "x"])
        case types.NoneType():
            return st.none()
    return json_values


def least(type_: types.Type) -> Any:
    """The least value of a type that is taken."""
    match plain(type_):
        case types.StructType() as struct:
            if (known := FITTING.get(struct.cls.__name__)) is not None:
                names = {each.encode_name for each in struct.fields}
                return {name: value for name, value in known.items() if name in names}
            return {each.encode_name: least(each.type) for each in struct.fields if each.required}
        case types.ListType(item_type=item):
            return [least(item)]
        case types.UnionType(types=kinds):
            return least(kinds[0])
        case types.LiteralType(values=values):
            return values[0]
        case types.StrType():
            return "f"
        case types.IntType():
            return 1
        case types.DictType():
            return {}
    return None


def places(type_: types.Type, seen: tuple[type, ...] = ()) -> Iterator[tuple[tuple[Step, ...], types.Type]]:
    """Every field in a type, structs in structs included: its way there and its type."""
    match plain(type_):
        case types.StructType(cls=cls) as struct if cls not in seen:
            for each in struct.fields:
                yield (each.encode_name,), each.type
                for way, kind in places(each.type, (*seen, cls)):
                    yield (each.encode_name, *way), kind
        case types.ListType(item_type=item):
            yield from (((0, *way), kind) for way, kind in places(item, seen))
        case types.UnionType(types=kinds):
            for kind in kinds:
                yield from places(kind, seen)


def around(type_: types.Type, way: tuple[Step, ...], value: Any) -> Any:
    """A value of the type with `value` at the end of the way, and the least of everything else."""
    if not way:
        return value
    step, *rest = way
    match plain(type_):
        case types.UnionType(types=kinds):
            kind = next(kind for kind in kinds if leads(kind, step))
            return around(kind, way, value)
        case types.ListType(item_type=item):
            return [around(item, tuple(rest), value)]
        case types.StructType() as struct:
            field = next(each for each in struct.fields if each.encode_name == step)
            return least(struct) | {step: around(field.type, tuple(rest), value)}
    raise AssertionError(way)


def leads(type_: types.Type, step: Step) -> bool:
    match plain(type_):
        case types.StructType() as struct:
            return step in {each.encode_name for each in struct.fields}
        case types.ListType():
            return step == 0
    return False


def encoded(body: Any) -> bytes:
    """JSON, with `Raw` as it stands."""
    raw: list[str] = []

    def mark(value: Any) -> Any:
        match value:
            case Raw():
                raw.append(value)
                return f"@{len(raw) - 1}@"
            case dict():
                return {name: mark(inner) for name, inner in value.items()}
            case list():
                return [mark(inner) for inner in value]
        return value

    text = json.dumps(mark(body), ensure_ascii=False)
    for number, piece in enumerate(raw):
        text = text.replace(f'"@{number}@"', piece)
    return text.encode("utf-8", "surrogatepass")


# ---- who is asked


class Asker:
    """The app without a socket, on a loop of its own: a question costs a millisecond."""

    def __init__(self, app: Litestar, runner: asyncio.Runner) -> None:
        self._app, self._runner = app, runner

    def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        return self._runner.run(self._ask(path, body))

    async def _ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        sent: list[Any] = []
        asked = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            if (message := next(asked, None)) is not None:
                return message
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope: Any = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-length", b"%d" % len(body))],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        async with asyncio.timeout(PATIENCE_S):
            await self._app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture(scope="module")
def asker(tiny: Path) -> Iterator[Asker]:
    tools = scripted("<tool_call>{}</tool_call> Hello.", context_length=64)
    app = create_app(config_of({"m": tools, "tiny": LocalModel(path=str(tiny), threads=1)}))
    with asyncio.Runner() as runner:
        runner.run(app.state.router.start())
        runner.run(app.state.router.tried())
        yield Asker(app, runner)
        runner.run(app.state.router.aclose())


# ---- what must hold


def check(door: Door, status: int, answer: bytes) -> None:
    assert status == 200 or 400 <= status < 500 or status == 503, (status, answer[:500])
    for failure in (b'"server_error"', b'"engine_failed"'):
        assert failure not in answer, answer[-500:]
    if status == 200:
        return
    refusal = msgspec.json.decode(answer)
    match door.words:
        case "openai":
            assert refusal.keys() == {"error"}
            assert refusal["error"].keys() == {"message", "type", "param", "code"}
            message = refusal["error"]["message"]
        case "anthropic":
            assert refusal.keys() == {"type", "error"} and refusal["type"] == "error"
            message = refusal["error"]["message"]
        case "ollama":
            assert refusal.keys() == {"error"}
            message = refusal["error"]
    assert isinstance(message, str) and message and "Traceback" not in message


FIELDS = [
    pytest.param(name, way, kind, id=f"{name}: {'.'.join(map(str, way))}")
    for name, door in DOORS.items()
    for way, kind in dict(places(types.type_info(door.takes))).items()
]


def test_every_door_takes_its_least_body(asker: Asker) -> None:
    for name, door in DOORS.items():
        status, answer = asker.ask(door.path, encoded(door.body))
        assert status == 200 or name == "embeddings", (name, answer)


@pytest.mark.parametrize(("name", "way", "kind"), FIELDS)
def test_a_field(
    asker: Asker, caplog: pytest.LogCaptureFixture, name: str, way: tuple[Step, ...], kind: types.Type
) -> None:
    door = DOORS[name]
    whole = types.type_info(door.takes)

    @settings(
        max_examples=EXAMPLES if len(way) == 1 else EXAMPLES // 2,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(HOSTILE) | fitting(kind), st.booleans())
    def holds(value: Any, streamed: bool) -> None:
        first = around(whole, way, value)[way[0]]
        body = {**door.body, **({"stream": True} if streamed else {}), way[0]: first}
        check(door, *asker.ask(door.path, encoded(body)))

    holds()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text


@pytest.mark.parametrize("name", DOORS)
def test_a_whole_body(asker: Asker, caplog: pytest.LogCaptureFixture, name: str) -> None:
    door = DOORS[name]

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(fitting(types.type_info(door.takes)) | json_values | st.sampled_from(HOSTILE), st.booleans())
    def holds(body: Any, keeps_base: bool) -> None:
        if keeps_base and isinstance(body, dict):
            body = {**body, **door.body}
        check(door, *asker.ask(door.path, encoded(body)))

    holds()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text
