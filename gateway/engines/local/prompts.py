"""The text side of a local model: prompts to token ids in the prompt process, token ids to bytes here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from gateway.dialects.base import Parser
from gateway.dialects.choose import choose_dialect
from gateway.dialects.plain import PlainParser
from gateway.engines.context import answer_reserve, text_prompt
from gateway.engines.local.prompt_process import PromptProcess, characters_of
from gateway.errors import InvalidRequest
from gateway.generation import Chat, Generation, Grammar, Prompt, Text, TokenIds
from gateway.prompts.messages import (
    Decode,
    Decoded,
    Encode,
    Encoded,
    EncodedInputs,
    EncodeInputs,
    Predict,
    Request,
    Setup,
    Tokenize,
    check_characters,
)
from gateway.text.vocabulary import Vocabulary


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
    def tool_template(self) -> str | None: ...
    @property
    def end_ids(self) -> Sequence[int]: ...


def setup_of(bundle: TextSide, dialect: str) -> Setup:
    """What the prompt process reads. `dialect`: its name, or "" to choose by the chat template."""
    return Setup(
        model=bundle.folder.name,
        dialect=dialect,
        tokenizer_path=str(bundle.tokenizer_path.absolute()),
        tokenizer_config=bundle.tokenizer_config,
        chat_template=bundle.chat_template,
        tool_template=bundle.tool_template,
    )


class Prompts:
    """Encodes prompts for one bundle, after `start`.

    Args:
        dialect: its name, or "" to choose by the chat template.
        end_strings: texts that end an answer, as an end token does.

    Raises:
        ConfigError: there is no dialect of this name.
    """

    #: Tokens. A text that cannot fit is refused before it is sent.
    context_length = 0

    def __init__(self, bundle: TextSide, dialect: str, *, end_strings: Sequence[str] = ()) -> None:
        self._dialect = choose_dialect(dialect, bundle.chat_template or "", bundle.tool_template or "")
        self._process = PromptProcess(setup_of(bundle, dialect))
        self._name = bundle.folder.name
        self.end_ids = list(bundle.end_ids)
        self.end_strings = end_strings
        self._tokens: Vocabulary | None = None  # None before `start`

    @property
    def is_started(self) -> bool:
        return self._tokens is not None

    @property
    def tokens(self) -> Vocabulary:
        assert self._tokens is not None
        return self._tokens

    def begin(self) -> None:
        """Start the process, and do not wait for it: `start` does. Raises SandboxUnavailable."""
        self._process.begin()

    def end(self) -> None:
        """End the processes. Blocks until they are gone."""
        self._process.end()

    async def start(self) -> None:
        """Start the process and read the vocabulary. Raises BundleError for text files that cannot be read."""
        self._tokens = await self._process.start()
        if self._process.end_id is not None and self._process.end_id not in self.end_ids:
            self.end_ids.append(self._process.end_id)

    async def aclose(self) -> None:
        await self._process.aclose()

    async def encode(self, generation: Generation) -> Encoded:
        """Encode prompt and prediction. Raises InvalidRequest, ModelNotReady."""
        return await self._encode(
            text_prompt(self._name, generation),
            generation.client,
            answer=generation.grammar,
            prediction=generation.prediction or "",
            reserve=answer_reserve(generation, self.context_length),
        )

    async def encode_prompt(self, prompt: Prompt, client: str) -> Encoded:
        """The token ids and the text of one prompt. Raises InvalidRequest, ModelNotReady."""
        return await self._encode(prompt, client)

    async def encode_inputs(self, request: EncodeInputs, client: str) -> EncodedInputs:
        """Texts or pairs for an encoder. Raises InvalidRequest, ModelNotReady."""
        reply = await self._process.ask(request, client, request.param)
        assert isinstance(reply, EncodedInputs)
        return reply

    async def tokenize(self, text: str, client: str, *, begin: bool, specials: bool) -> list[int]:
        """The token ids of a text, as the tokenizer.json specifies. Raises InvalidRequest, ModelNotReady."""
        self._check_length(len(text), "content")
        request = Tokenize(text=text, begin=begin, specials=specials)
        return (await self._ask(request, client, "content")).ids

    async def decode(self, ids: Sequence[int], client: str) -> str:
        """The text of `ids`, with special tokens. Raises InvalidRequest, ModelNotReady."""
        reply = await self._process.ask(Decode(ids=list(ids)), client, "tokens")
        assert isinstance(reply, Decoded)
        return reply.text

    def parsers(self, generation: Generation, prompt: Encoded) -> list[Parser]:
        """One parser for each choice."""
        match generation.prompt:
            case Chat() as chat:
                return [self._dialect.parser(chat, prompt.rendered, choice) for choice in range(generation.n)]
            case _:
                return [PlainParser(choice) for choice in range(generation.n)]

    async def _encode(
        self,
        prompt: Prompt,
        client: str,
        *,
        answer: Grammar | None = None,
        prediction: str = "",
        reserve: int | None = None,
    ) -> Encoded:
        prediction = prediction[: self.tokens.max_characters(self.context_length)]
        param = "messages" if isinstance(prompt, Chat) else "prompt"
        match prompt:
            case TokenIds(ids=ids):
                encoded = await self._predict(prediction, client)
                self.tokens.check_ids(ids[: self.context_length], "prompt")  # more of them are refused later
                encoded = replace(encoded, ids=list(ids), grammar=answer)
            case Chat() | Text():
                if reserve is None:
                    self._check_length(characters_of(prompt), param)
                request = Encode(
                    prompt=prompt,
                    answer=answer,
                    prediction=prediction,
                    context_length=self.context_length,
                    reserve=reserve,
                )
                encoded = await self._ask(request, client, param)
        if not encoded.ids:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        return encoded

    async def _predict(self, prediction: str, client: str) -> Encoded:
        if not prediction:
            return Encoded(ids=[])
        request = Predict(prediction=prediction, context_length=self.context_length)
        return await self._ask(request, client, "prediction")

    async def _ask(self, request: Request, client: str, param: str) -> Encoded:
        reply = await self._process.ask(request, client, param)
        assert isinstance(reply, Encoded)
        return reply

    def _check_length(self, characters: int, param: str) -> None:
        check_characters(characters, self.context_length, self.tokens.table.longest, param)
