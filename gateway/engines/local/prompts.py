"""From a prompt to the token ids for a local model: chat template, dialect, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from gateway.dialects.base import Parser
from gateway.dialects.choose import choose_dialect
from gateway.dialects.plain import PlainParser
from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.generation import Chat, Generation, Grammar, Prompt, Text, TokenIds
from gateway.text.infill import infill_ids
from gateway.text.templates import ChatTemplate
from gateway.text.tokens import TextTokenizer


class EncodedPrompt(Struct, frozen=True, kw_only=True):
    """A prompt as the model gets it."""

    ids: list[int]
    rendered: str = ""  # the prompt as text, after the chat template; "" if the client sent token ids
    prediction: list[int] = []
    grammar: Grammar | None = None


class TextSide(Protocol):
    """What `Prompts` needs from a bundle: its text files and end tokens. Every layout has these fields."""

    @property
    def folder(self) -> Path: ...
    @property
    def tokenizer_path(self) -> Path: ...
    @property
    def tokenizer_config(self) -> dict[str, Any]: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def end_ids(self) -> Sequence[int]: ...


class Prompts:
    """Encodes prompts for one bundle.

    Args:
        dialect: its name, or "" to choose by the chat template.

    Raises:
        BundleError, ConfigError: the bundle's text files or the dialect cannot be read.
    """

    def __init__(self, bundle: TextSide, dialect: str) -> None:
        self._name = bundle.folder.name
        self._dialect = choose_dialect(dialect, bundle.chat_template or "")
        self._template = ChatTemplate(bundle.chat_template, bundle.tokenizer_config) if bundle.chat_template else None
        self.tokens = TextTokenizer.load(bundle.tokenizer_path, self._dialect.markers)
        self.end_ids = list(bundle.end_ids)

    def encode(self, generation: Generation) -> EncodedPrompt:
        """Encode prompt and prediction. Call it in a thread: it takes long for a long prompt. Raises InvalidRequest."""
        prompt = self.encode_prompt(generation.prompt, generation.grammar)
        return EncodedPrompt(
            ids=prompt.ids,
            rendered=prompt.rendered,
            prediction=self.tokens.encode_continuation(generation.prediction) if generation.prediction else [],
            grammar=prompt.grammar,
        )

    def encode_prompt(self, prompt: Prompt, answer: Grammar | None = None) -> EncodedPrompt:
        """The token ids and the text of one prompt. `answer` is the grammar of the answer. Raises InvalidRequest."""
        match prompt:
            case Chat():
                prepared = self._chat(prompt, answer)
            case Text(text=text, suffix=str(suffix)):
                prepared = EncodedPrompt(ids=self._infill(text, suffix), rendered=text, grammar=answer)
            case Text(text=text):
                prepared = EncodedPrompt(ids=self.tokens.encode(text), rendered=text, grammar=answer)
            case TokenIds(ids=ids):
                self.tokens.check_ids(ids, "prompt")
                prepared = EncodedPrompt(ids=list(ids), grammar=answer)
        if not prepared.ids:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        return prepared

    def parsers(self, generation: Generation, prompt: EncodedPrompt) -> list[Parser]:
        """One parser for each choice."""
        match generation.prompt:
            case Chat() as chat:
                return [self._dialect.parser(chat, prompt.rendered, choice) for choice in range(generation.n)]
            case _:
                return [PlainParser(choice) for choice in range(generation.n)]

    def _infill(self, prefix: str, suffix: str) -> list[int]:
        ids = infill_ids(self.tokens, prefix, suffix)
        if ids is None:
            raise UnsupportedParameter(f"The model '{self._name}' cannot fill in the middle.", param="suffix")
        return ids

    def _chat(self, chat: Chat, answer: Grammar | None) -> EncodedPrompt:
        if self._template is None:
            raise InvalidRequest(f"The model '{self._name}' has no chat template; send its prompt as text.")
        escape = self.tokens.special_token_escape()
        rendered = self._template.render(self._dialect.prepare(chat, self._template.source), escape.escape)
        return EncodedPrompt(
            ids=self.tokens.encode_rendered(rendered, escape),
            rendered=escape.unescape(rendered),
            grammar=self._dialect.grammar(chat, escape.unescape(rendered), self._terminal, answer),
        )

    def _terminal(self, text: str) -> str:
        index = self.tokens.special_id(text)
        return json.dumps(text) if index is None else f"<[{index}]>"
