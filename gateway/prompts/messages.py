"""The messages between the gateway process and a process that prepares prompts.

Requests are JSON, which has integers of any size. Replies are msgpack, which has bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from gateway.errors import ContextLengthExceeded
from gateway.generation import Chat, Grammar, Text
from gateway.text.vocabulary import VocabularyTable

_CHARACTERS = 64  # of one token of an encoder


class Setup(Struct, frozen=True, kw_only=True):
    """The text files of a bundle, and the name of the dialect."""

    model: str  # for messages
    dialect: str
    tokenizer_path: str
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    tool_template: str | None = None  # for a chat with tools; None: `chat_template`


class Encode(Struct, frozen=True, tag=True, kw_only=True):
    """Render and encode a prompt. The reply is Encoded."""

    prompt: Chat | Text
    answer: Grammar | None = None  # the grammar of the answer
    prediction: str = ""
    context_length: int
    reserve: int | None = None  # tokens for the answer, for which old messages of a chat go; None: none goes


class Predict(Struct, frozen=True, tag=True, kw_only=True):
    """Encode the prediction for a prompt that is token ids already. The reply is Encoded, with `ids` empty."""

    prediction: str
    context_length: int


class Tokenize(Struct, frozen=True, tag=True, kw_only=True):
    """Encode raw text. The reply is Encoded."""

    text: str
    begin: bool
    specials: bool


class EncodeInputs(Struct, frozen=True, tag=True, kw_only=True):
    """Encode the texts or the pairs for an encoder, with its special tokens. The reply is EncodedInputs.

    Without a text or a pair, the reply has two lists: the special tokens before and after each text.
    """

    texts: list[str] = []
    pairs: list[tuple[str, str]] = []
    start: int = 0  # the index of the first of them in the client's request, for messages
    param: str = "input"
    prefix: str = ""  # before each text, or before the first of each pair
    lower_case: bool = False
    longest: int  # tokens
    truncate: bool

    @property
    def most_characters(self) -> int:
        """Of a text or a pair: more of them are cut before they are encoded, or refused."""
        return _CHARACTERS * self.longest


class Decode(Struct, frozen=True, tag=True, kw_only=True):
    """Decode token ids. The reply is Decoded."""

    ids: list[int]


Request = Encode | EncodeInputs | Predict | Tokenize | Decode


class Opened(Struct, frozen=True, tag=True, kw_only=True):
    """The reply of the setup."""

    table: VocabularyTable
    end_id: int | None = None  # of `eos_token` in tokenizer_config.json, which configurations of graphs can lack


class Encoded(Struct, frozen=True, tag=True, kw_only=True):
    """A prompt as the model gets it."""

    ids: list[int]
    rendered: str = ""  # the prompt as text, after the chat template; "" if the client sent token ids
    prediction: list[int] = []
    grammar: Grammar | None = None
    dropped: int = 0  # messages of the chat that are not in the prompt, because it would be too long


class EncodedInputs(Struct, frozen=True, tag=True, kw_only=True):
    """Token ids of each text or pair. `firsts`: the tokens of the first text of each pair."""

    ids: list[list[int]]
    firsts: list[int] = []
    cut: int = 0  # texts that were longer than `longest`


class Decoded(Struct, frozen=True, tag=True, kw_only=True):
    text: str


class Refused(Struct, frozen=True, tag=True, kw_only=True):
    """A GatewayError of the child, or a bug, which has a trace for the log."""

    kind: str  # the name of the class
    message: str
    param: str | None = None
    trace: str = ""


Reply = Opened | Encoded | EncodedInputs | Decoded | Refused

encode_request = msgspec.json.encode
decode_request = msgspec.json.Decoder(Request).decode
encode_reply = msgspec.msgpack.encode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def check_characters(characters: int, context_length: int, longest: int, param: str) -> None:
    """Raise ContextLengthExceeded if no text with this number of characters fits into the context.

    Args:
        longest: bytes of the longest token.
    """
    if characters > context_length * longest:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, your prompt has {characters} "
            f"characters, and no prompt with more than {context_length * longest} fits. Please reduce its length.",
            param=param,
        )
