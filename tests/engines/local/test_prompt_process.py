"""The prompt process: real child processes over the tiny tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from gateway.engines.local import prompt_process
from gateway.engines.local.prompt_process import PromptProcess
from gateway.errors import BundleError, ContextLengthExceeded, GatewayError, InvalidRequest, ModelNotReady, Unavailable
from gateway.generation import Chat, Message, Text, Tool
from gateway.prompts.messages import Decode, Decoded, Encode, Encoded, Predict, Request, Setup, Tokenize
from tests.support.local_engine import until
from tests.support.processes import PATIENCE_S
from tests.support.tiny import CHATML, train_tokenizer

#: ChatML, with an attack for each of some words in the first message.
HOSTILE = (
    "{% set n = namespace(x=[0], y=[0]) %}"
    "{% if 'spin' in messages[0].content %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}"
    "{% elif 'slow' in messages[0].content %}{% for i in range(50) %}{% for j in range(99999) %}{{ '' }}{% endfor %}"
    "{% endfor %}"
    "{% elif 'format' in messages[0].content %}{% set n.x = ('%(a)99999d' * 40000) % {'a': 1} %}"
    "{% elif 'compare' in messages[0].content %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}"
    "{% elif 'slices' in messages[0].content %}{% set t = 'x' * 100000 %}"
    "{% for i in range(99999) %}{% set n.x = n.x + [t[1:]] %}{% endfor %}"
    "{% elif 'refuse' in messages[0].content %}{{ raise_exception('r' * 99999) }}"
    "{% endif %}" + CHATML
)
LONG = 10**7  # tokens of context: no text is refused for its length
LONG_TEXT = " x" * 40_000  # more than the process for short requests gets
Make = Callable[..., PromptProcess]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer().to_str(), encoding="utf-8")
    return path


@pytest_asyncio.fixture
async def make(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    limits = prompt_process.LIMITS._replace(wall_s=60 * PATIENCE_S)  # a busy machine gives a background process little
    monkeypatch.setattr(prompt_process, "LIMITS", limits)
    made: list[PromptProcess] = []

    def make(template: str | None = HOSTILE, path: Path = tokenizer) -> PromptProcess:
        setup = Setup(model="m", dialect="", tokenizer_path=str(path), tokenizer_config={}, chat_template=template)
        made.append(PromptProcess(setup))
        return made[-1]

    yield make
    for process in made:
        await process.aclose()


def chat(content: str, **fields: Any) -> Encode:
    return Encode(prompt=Chat(messages=(Message(role="user", content=content),), **fields), context_length=LONG)


async def ids(process: PromptProcess, request: Request, client: str = "a") -> list[int]:
    reply = await process.ask(request, client, "messages")
    assert isinstance(reply, Encoded)
    return reply.ids


def pids() -> set[int]:
    """The child processes that run a sandbox."""
    found = set()
    for child in psutil.Process().children():
        try:
            if any(argument.endswith("child.py") for argument in child.cmdline()):
                found.add(child.pid)
        except psutil.Error:
            pass  # it has just ended
    return found


async def test_requests_of_each_kind_are_answered(make: Make) -> None:
    process = make()
    vocabulary = await process.start()
    encoded = await process.ask(chat("Hello"), "a", "messages")
    assert isinstance(encoded, Encoded)
    assert encoded.rendered == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert b"".join(map(vocabulary.token_bytes, encoded.ids)).decode() == encoded.rendered
    assert await ids(process, Tokenize(text="<|im_end|>", begin=False, specials=True)) == [2]
    assert await process.ask(Decode(ids=[2]), "a", "tokens") == Decoded(text="<|im_end|>")
    predicted = await process.ask(Predict(prediction="Hello" * 9, context_length=1), "a", "prediction")
    assert isinstance(predicted, Encoded) and len(predicted.prediction) < 9
    both = await process.ask(Encode(prompt=Text("a"), prediction="Hello", context_length=512), "a", "prompt")
    assert isinstance(both, Encoded) and both.prediction == await ids(
        process, Tokenize(text="Hello", begin=False, specials=True)
    )


@pytest.mark.parametrize("attack", ["spin", "compare", "format", "slices"])
async def test_template_over_a_limit_is_invalid_request_and_the_next_is_answered(
    attack: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_process, "LIMITS", prompt_process.LIMITS._replace(cpu_s=1))
    process = make()
    await process.start()
    with pytest.raises(
        InvalidRequest, match=r"preparing it (took more than|ended the process)|cannot render"
    ) as refused:
        await process.ask(chat(attack), "a", "messages")
    assert refused.value.param == "messages"
    assert len(await ids(process, chat("Hello"))) > 5


async def test_machine_that_is_too_busy_is_not_the_texts_fault(make: Make) -> None:
    process = make()
    await process.start()
    await ids(process, chat("Hello" + LONG_TEXT))  # the process for long requests is set up
    sandbox = process._long.sandbox
    usual, sandbox._limits = sandbox._limits, sandbox._limits._replace(cpu_s=PATIENCE_S, wall_s=0.0)
    with pytest.raises(Unavailable, match=r"^The machine is too busy: .* took more than 0 seconds\. Try again"):
        await process.ask(chat("spin" + LONG_TEXT), "a", "messages")
    sandbox._limits = usual
    assert len(await ids(process, chat("Hello" + LONG_TEXT))) > 5


async def test_request_over_the_short_limit_is_answered_by_the_second_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_process, "_SHORT_CPU_S", 0.05)
    process = make()
    before = pids()
    await process.start()
    short = pids() - before
    assert len(short) == 1
    assert await ids(process, chat("slow")) == await ids(
        process, Encode(prompt=Text(CHATML_OF_SLOW), context_length=LONG)
    )
    assert len(pids() - before) == 2


CHATML_OF_SLOW = "<|im_start|>user\nslow<|im_end|>\n<|im_start|>assistant\n"


async def test_long_texts_do_not_delay_short_requests(make: Make) -> None:
    """Four chats of 6.9 MB take the second process for seconds. The short requests of another client are answered."""
    process = make()
    await process.start()
    text = "Hello, how are you today? " * (6_900_000 // 26)
    long = [asyncio.create_task(process.ask(chat(text), "a", "messages")) for _ in range(4)]
    for _ in range(10):
        assert len(await ids(process, chat("Hello"), "b")) > 5
    assert not all(task.done() for task in long)
    outcomes = await asyncio.gather(*long, return_exceptions=True)
    assert all(isinstance(outcome, Encoded | InvalidRequest) for outcome in outcomes), outcomes


async def test_second_process_ends_when_idle(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_process, "_IDLE_S", 0.0)
    process = make()
    before = pids()
    await process.start()
    for _ in range(2):
        assert len(await ids(process, chat("Hello " * 20_000))) > 20_000
        await until(lambda: len(pids() - before) == 1)


async def test_second_process_is_idle_when_the_last_request_has_ended(make: Make) -> None:
    process, before = make(), asyncio.all_tasks()
    await asyncio.gather(*(ids(process, chat("Hello " * 20_000), client) for client in ("a", "b", "c")))
    (timer,) = asyncio.all_tasks() - before
    assert timer is process._idle
    running = asyncio.create_task(ids(process, chat("spin" * 20_000)))
    await until(lambda: timer.cancelled())
    await process.aclose()
    with pytest.raises(ModelNotReady):
        await running
    assert asyncio.all_tasks() == before


async def test_rendered_text_is_measured_before_it_is_tokenized(make: Make) -> None:
    process = make("{% for i in range(9999) %}{{ messages[0].content }}{% endfor %}")
    await process.start()
    request = Encode(prompt=Chat(messages=(Message(role="user", content="x" * 100),)), context_length=512)
    with pytest.raises(ContextLengthExceeded, match="999900 characters") as refused:
        await process.ask(request, "a", "messages")
    assert refused.value.param == "messages"


async def test_message_of_a_template_is_cut(make: Make) -> None:
    process = make()
    await process.start()
    with pytest.raises(InvalidRequest, match=r"refuses the messages: r+") as refused:
        await process.ask(chat("refuse"), "a", "messages")
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "value",
    [
        "".join(map(chr, range(0xF0000, 0xFFFFE))),
        "".join(map(chr, range(0x100000, 0x10FFFE))),
        "".join(map(chr, (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)))),
        "".join(map(chr, (*range(0xE000, 0xF900), *range(0x40000, 0x50000)))),
        "\U0010fffd0123456789abcdef",
        "\x00\x1f\ufeff\ufffe\uffff\U0001ffff",
    ],
    ids=["plane 15", "plane 16", "both planes", "other planes", "marker", "noncharacters"],
)
async def test_any_character_with_a_special_token_is_rendered_as_it_is(value: str, make: Make) -> None:
    process = make(
        "{{ messages | tojson }}{{ tools | tojson }}{{ more | default(1) | tojson }}{{ messages[-1].content }}"
    )
    vocabulary = await process.start()
    for field in ("content", "name", "tool", "key", "last"):
        reply = await process.ask(_with(f"{value}<|im_end|>", field), "a", "messages")
        assert isinstance(reply, Encoded)
        assert 2 not in reply.ids
        assert b"".join(map(vocabulary.token_bytes, reply.ids)).decode() == reply.rendered
        assert "<|im_end|>" in reply.rendered


def _with(text: str, field: str) -> Encode:
    name = text if field == "name" else None
    messages = [Message(role="user", content=text if field == "content" else "x", name=name)]
    if field == "last":  # its turn stays open
        messages.append(Message(role="assistant", content=text))
    tools = (Tool(name="f", description=text, parameters={text: text}),) if field == "tool" else ()
    more = {"more": {text: 1}} if field == "key" else {}
    return Encode(prompt=Chat(messages=tuple(messages), tools=tools, template_kwargs=more), context_length=LONG)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (chat("\ud800"), "not valid Unicode"),
        (chat("x", template_kwargs={"a\udfff": 1}), "not valid Unicode"),
        (chat("x", tools=(Tool(name="f", parameters={"a": "\ud800<|im_end|>"}),)), "not valid Unicode"),
        (Tokenize(text="\udfff", begin=True, specials=True), "not valid Unicode"),
        (Decode(ids=[384]), "outside the vocabulary"),
        (Decode(ids=[-1]), "outside the vocabulary"),
        (Encode(prompt=Text("a", suffix="b"), context_length=9), "cannot fill in the middle"),
    ],
)
async def test_wrong_value_is_invalid_request(request_: Request, words: str, make: Make) -> None:
    process = make()
    await process.start()
    with pytest.raises(InvalidRequest, match=words):
        await process.ask(request_, "a", "messages")
    assert len(await ids(process, chat("Hello"))) > 5


async def test_deeply_nested_value_is_invalid_request(make: Make) -> None:
    process = make("{{ more }}")
    await process.start()
    nested: Any = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(InvalidRequest):
        await process.ask(chat("x", template_kwargs={"more": nested}), "a", "messages")
    assert await ids(process, chat("x", template_kwargs={"more": [2**80, -1e300]}))


async def test_lack_of_memory_ends_only_the_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer aborts its process if there is no memory left."""
    small = prompt_process.LIMITS._replace(address_bytes=300 << 20)
    monkeypatch.setattr(prompt_process, "LIMITS", small)
    process = make()
    await process.start()
    with pytest.raises(InvalidRequest, match="too long or too complex"):
        await process.ask(chat("a b c d " * 1_000_000), "a", "messages")
    assert len(await ids(process, chat("Hello"))) > 5


async def test_killed_process_is_replaced(make: Make) -> None:
    process = make()
    before = pids()
    await process.start()
    for pid in pids() - before:
        psutil.Process(pid).kill()
    assert len(await ids(process, chat("Hello"))) > 5


async def test_close_ends_running_requests_and_processes(make: Make) -> None:
    process = make()
    before = pids()
    await process.start()
    running = asyncio.create_task(process.ask(chat("compare"), "a", "messages"))
    await asyncio.sleep(0)
    await process.aclose()
    with pytest.raises(ModelNotReady):
        await running
    assert pids() <= before
    with pytest.raises(ModelNotReady):
        await process.ask(chat("Hello"), "a", "messages")


async def test_request_is_503_if_no_process_can_be_started(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    process = make()
    monkeypatch.setattr("sys.executable", "missing-python")
    with pytest.raises(ModelNotReady, match="cannot be started"):
        await process.ask(chat("Hello"), "a", "messages")
    with pytest.raises(BundleError, match="cannot be started"):
        await process.start()


@pytest.mark.parametrize(
    ("template", "content", "words"),
    [("{% for %}", None, "chat template"), (None, "{", r"tokenizer\.json"), (None, None, r"tokenizer\.json")],
)
async def test_file_that_cannot_be_read_is_bundle_error(
    template: str | None, content: str | None, words: str, make: Make, tokenizer: Path, tmp_path: Path
) -> None:
    path = tokenizer
    if template is None:
        path = tmp_path / "tokenizer.json"
        if content is not None:
            path.write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=words):
        await make(template, path).start()


async def test_bug_is_invalid_request_with_a_trace_in_the_log(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Lark cannot be made of this schema, which no API lets through: a bug for the process."""
    process = make()
    await process.start()
    broken: Any = {"type": "object", "properties": 5}
    tools = (Tool(name="f", parameters=broken, strict=True),)
    try:
        await process.ask(chat("x", tools=tools), "a", "messages")
    except GatewayError as error:
        assert isinstance(error, InvalidRequest)
    assert len(await ids(process, chat("Hello"))) > 5
