"""The stream of one answer: what is kept of it, its figures, and an end in the middle."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from openai import OpenAI

from gateway.commands.chat.conversation import Answer, Conversation
from gateway.errors import UpstreamFailed
from tests.support.server import Running, config_of, scripted, serving, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    hang = {"requests": [0], "after": 1, "stall_s": float("inf")}
    models = {
        "turns": scripted("one", "two", "three"),
        "hangs": scripted("one two", faults=[hang]),
        "small": scripted("word", repeat=True, context_length=12),
    }
    with serving(config_of(models)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with server.openai() as opened:
        yield opened


def answered(conversation: Conversation, question: str) -> Answer:
    answer = Answer()
    for _ in conversation.ask(question, answer):
        pass
    return answer


def test_conversation_keeps_turns_until_cleared(client: OpenAI) -> None:
    conversation = Conversation(client, "turns", system="Be brief.", max_tokens=5)
    assert [answered(conversation, "a").text, answered(conversation, "b").text] == ["one", "two"]
    assert [turn["content"] for turn in conversation.turns] == ["a", "one", "b", "two"]
    conversation.clear()
    assert conversation.turns == []
    assert answered(conversation, "c").text == "three"
    assert [turn["content"] for turn in conversation.turns] == ["c", "three"]


def test_closed_answer_stops_the_device_and_stays_in_the_conversation(server: Running, client: OpenAI) -> None:
    conversation = Conversation(client, "hangs", max_tokens=5)
    answer = Answer()
    with closing(conversation.ask("q", answer)) as pieces:
        assert next(pieces).text == "one"
    wait_until(lambda: not any(lane.running for lane in server.app.state.router.status()), "it still runs")
    assert (answer.text, answer.tokens, answer.figures) == ("one", None, "")
    assert [turn["content"] for turn in conversation.turns] == ["q", "one"]


def test_answer_that_fills_the_context_says_it(client: OpenAI) -> None:
    answer = answered(Conversation(client, "small", max_tokens=500), "a b c")
    assert answer.note == f"the answer was cut after {answer.tokens} tokens: the context of the model is full"


def test_figures_have_first_token_speed_and_count() -> None:
    assert Answer(tokens=11, first_s=0.268, last_s=1.268).figures == "first token 268 ms, 10.0 tokens/s, 11 tokens"
    assert Answer(tokens=1, first_s=0.3, last_s=0.3).figures == "first token 300 ms, 1 token"


def test_gateway_that_ends_in_the_middle_is_one_sentence() -> None:
    chunk = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'

    def serve_half() -> None:
        connection, _ = listener.accept()
        with connection:
            request = b""
            while not request.endswith(b"}"):  # a close before the whole body is there would be a reset
                request += connection.recv(65536)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            connection.sendall(head + b"%x\r\n%s\r\n" % (len(chunk), chunk))

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve_half)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with OpenAI(base_url=url, api_key="x", max_retries=0) as client:
            conversation = Conversation(client, "m", max_tokens=5)
            with pytest.raises(UpstreamFailed, match=r"^The gateway ended before its answer was complete\.$"):
                answered(conversation, "q")
        thread.join()
    assert [turn["content"] for turn in conversation.turns] == ["q", "hi"]
