"""From a prompt to the token ids for a local model: dialect, chat template, tokenizer.

All of it works on what a client sent, with files of the bundle, so it runs in a process with limits: `open_task` is a
task of `gateway.sandbox`.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.dialects.base import uses_tools
from gateway.dialects.choose import choose_dialect
from gateway.errors import ContextLengthExceeded, GatewayError, InvalidRequest, UnsupportedParameter
from gateway.generation import Chat, Text
from gateway.prompts.embedding import encode_inputs
from gateway.prompts.history import Histories
from gateway.prompts.messages import (
    Decode,
    Decoded,
    Encode,
    Encoded,
    EncodeInputs,
    Opened,
    Predict,
    Refused,
    Reply,
    Request,
    Setup,
    Tokenize,
    check_characters,
    decode_request,
    encode_reply,
)
from gateway.text.infill import infill_ids
from gateway.text.templates import ChatTemplate
from gateway.text.tokens import TextTokenizer


def open_task(setup: Any) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The task of the sandbox. `setup` is a Setup. A bundle that cannot be read is Refused, also later."""
    os.putenv("TOKENIZERS_PARALLELISM", "false")  # one text at a time; threads cost memory
    try:
        encoder = PromptEncoder(msgspec.convert(setup, Setup))
    except GatewayError as error:
        refused = encode_reply(_refused(error))
        return refused, lambda _: refused
    opened = Opened(table=encoder.tokens.table, end_id=encoder.end_id)
    return encode_reply(opened), lambda message: encode_reply(encoder.handle(message))


class PromptEncoder:
    """Encodes prompts for one bundle.

    Raises:
        BundleError, ConfigError: the text files of the bundle or the dialect cannot be read.
    """

    def __init__(self, setup: Setup) -> None:
        self._model = setup.model
        self._dialect = choose_dialect(setup.dialect, setup.chat_template or "", setup.tool_template or "")
        self._template = _template(setup, setup.chat_template)
        self._tool_template = _template(setup, setup.tool_template) or self._template
        self.tokens = TextTokenizer.load(Path(setup.tokenizer_path), self._dialect.markers)
        end = setup.tokenizer_config.get("eos_token")
        text = end.get("content") if isinstance(end, dict) else end
        self.end_id = self.tokens.token_id(text) if isinstance(text, str) else None

    def handle(self, message: bytes) -> Reply:
        """The reply to one request. Only MemoryError leaves it: the process is of no use then."""
        try:
            return self._answer(decode_request(message))
        except MemoryError:
            raise
        except GatewayError as error:
            return _refused(error)
        except RecursionError:
            return _refused(InvalidRequest("The request is nested too deeply."))
        except Exception as error:
            text = f"The prompt cannot be prepared ({type(error).__name__})."
            return Refused(kind=InvalidRequest.__name__, message=text, trace=traceback.format_exc())

    def encode(self, request: Encode) -> Encoded:
        """The token ids and the text of a prompt. Raises InvalidRequest."""
        match request.prompt:
            case Chat() as chat:
                encoded = self._chat(chat, request) if request.reserve is None else self._fitted(chat, request)
                encoded = self._with_grammar(chat, encoded, request)
            case Text(text=text, suffix=str(suffix)):
                encoded = Encoded(ids=self._infill(text, suffix), rendered=text, grammar=request.answer)
            case Text(text=text):
                encoded = Encoded(ids=self.tokens.encode(text), rendered=text, grammar=request.answer)
        prediction = self._prediction(request.prediction, request.context_length)
        return replace(encoded, prediction=prediction) if prediction else encoded

    def _answer(self, request: Request) -> Reply:
        match request:
            case Encode():
                return self.encode(request)
            case EncodeInputs():
                return encode_inputs(self.tokens, request)
            case Predict():
                return Encoded(ids=[], prediction=self._prediction(request.prediction, request.context_length))
            case Tokenize():
                return Encoded(ids=self.tokens.encode(request.text, begin=request.begin, specials=request.specials))
            case Decode():
                return Decoded(text=self.tokens.decode(request.ids))

    def _prediction(self, text: str, context_length: int) -> list[int]:
        """The ids of the part of a prediction that an answer can use."""
        return self.tokens.encode_continuation(text[: self.tokens.max_characters(context_length)]) if text else []

    def _infill(self, prefix: str, suffix: str) -> list[int]:
        ids = infill_ids(self.tokens, prefix, suffix)
        if ids is None:
            raise UnsupportedParameter(f"The model '{self._model}' cannot fill in the middle.", param="suffix")
        return ids

    def _fitted(self, chat: Chat, request: Encode) -> Encoded:
        """The prompt of the longest history that fits, or of the shortest one: the engine refuses it if necessary."""
        limit = request.context_length - (request.reserve or 0)
        histories = Histories(chat.messages, step=request.context_length)
        fitting: dict[int, Encoded] = {}

        def encode(number: int) -> Encoded:
            return self._chat(replace(chat, messages=histories.messages(number)), request)

        def fits(number: int) -> bool:
            try:
                encoded = encode(number)
            except ContextLengthExceeded:  # it has too many characters
                return False
            if len(encoded.ids) <= limit:
                fitting[number] = encoded
            return number in fitting

        number = histories.longest(fits, request.context_length)
        encoded = fitting[number] if number in fitting else encode(number)
        return replace(encoded, dropped=histories.dropped(number))

    def _with_grammar(self, chat: Chat, encoded: Encoded, request: Encode) -> Encoded:
        grammar = self._dialect.grammar(chat, encoded.rendered, self._terminal, request.answer)
        return replace(encoded, grammar=grammar)

    def _chat(self, chat: Chat, request: Encode) -> Encoded:
        template = self._tool_template if uses_tools(chat) else self._template
        if template is None:
            raise InvalidRequest(f"The model '{self._model}' has no chat template; send its prompt as text.")
        escape = self.tokens.special_token_escape()
        escaped = template.render(self._dialect.prepare(chat, template.traits), escape.escape)
        rendered = escape.unescape(escaped)
        check_characters(len(rendered), request.context_length, self.tokens.table.longest, "messages")
        return Encoded(ids=self.tokens.encode_rendered(escaped, escape), rendered=rendered)

    def _terminal(self, text: str) -> str:
        index = self.tokens.special_id(text)
        return json.dumps(text) if index is None else f"<[{index}]>"


def _template(setup: Setup, source: str | None) -> ChatTemplate | None:
    return ChatTemplate(source, setup.tokenizer_config) if source else None


def _refused(error: GatewayError) -> Refused:
    return Refused(kind=type(error).__name__, message=error.message, param=error.param)
