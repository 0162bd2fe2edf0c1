"""Events become an OpenAI text completion: one reply, or a stream of chunks."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterable, Iterator

from msgspec import Struct

from gateway.errors import GatewayError
from gateway.generation import ChoiceFinished, Event, Finished, Started, TextDelta, TokenLogprob, Usage
from gateway.routes.collect import Collected, CollectedChoice
from gateway.routes.openai_api.render_chat import fingerprint, usage_of
from gateway.routes.openai_api.wire_completions import Completion, TextChoice, TextLogprobs
from gateway.routes.render import LOGPROB_FLOOR
from gateway.server.error_body import error_body
from gateway.server.sse import ANY_TEXT, DONE, MEDIA_TYPE, around_text, frame, with_text


class CompletionShape(Struct, frozen=True, kw_only=True):
    """What the reply contains."""

    id: str
    n: int  # choices in the reply for each prompt
    best_of: int  # choices generated for each prompt
    #: For each prompt, the text before its choices: the prompt itself with `echo`, else "".
    echoes: tuple[str, ...]
    with_logprobs: bool = False
    with_usage: bool = False


class CompletionRendering:
    """See `respond.Rendering`. Choice numbers run over all prompts, in order: prompt 0 has 0 to `best_of` - 1."""

    media_type = MEDIA_TYPE

    def __init__(self, shape: CompletionShape) -> None:
        self._shape = shape
        self._created = int(time.time())
        self._prompt = -1  # index of the prompt that is answered now
        self._around: dict[int, tuple[bytes, bytes]] = {}  # the text of each choice, in a chunk
        self._offsets = [_Offsets(len(echo)) for echo in shape.echoes for _ in range(shape.best_of)]

    def whole(self, model: str, collected: Collected) -> Completion:
        numbers = [number for prompt in range(len(self._shape.echoes)) for number in self._best(prompt, collected)]
        choices = [self._choice(index, number, collected) for index, number in enumerate(numbers)]
        return self._completion(model, choices, usage=collected.usage)

    def _best(self, prompt: int, collected: Collected) -> list[int]:
        """The `n` choices of this prompt with the highest mean log-probability of their tokens."""
        n, best_of = self._shape.n, self._shape.best_of
        numbers = range(prompt * best_of, (prompt + 1) * best_of)
        if n == best_of:
            return list(numbers)
        return sorted(numbers, key=lambda number: _mean_logprob(collected.choices[number]), reverse=True)[:n]

    def _choice(self, index: int, number: int, collected: Collected) -> TextChoice:
        prompt, choice = number // self._shape.best_of, collected.choices[number]
        logprobs = None
        if self._shape.with_logprobs:
            logprobs = self._prompt_logprobs(prompt, collected.prompt_logprobs[prompt])
            _extend(logprobs, choice.logprobs, self._offsets[number])
        text = self._shape.echoes[prompt] + choice.text
        return TextChoice(index=index, text=text, logprobs=logprobs, finish_reason=choice.reason)

    def pieces(self, model: str, event: Event) -> Iterator[bytes]:
        match event:
            case Started():
                self._prompt += 1
                yield from self._echoed(model, event)
            case TextDelta(text, number, tokens) if text or tokens:
                yield self._text(model, number, text, tokens)
            case ChoiceFinished(reason, number):
                yield self._chunk(model, TextChoice(index=number, text="", finish_reason=reason))
            case Finished():
                if self._shape.with_usage:
                    yield self._chunk(model, usage=event.usage)
                yield DONE

    def _text(self, model: str, number: int, text: str, tokens: Iterable[TokenLogprob]) -> bytes:
        if self._shape.with_logprobs:
            return self._chunk(model, TextChoice(index=number, text=text, logprobs=self._logprobs(tokens, number)))
        if (around := self._around.get(number)) is None:
            any_text = TextChoice(index=number, text=ANY_TEXT)
            around = self._around[number] = around_text(self._chunk(model, any_text))
        return with_text(around, text)

    def failed(self, error: GatewayError) -> bytes:
        return frame(error_body(error))

    def _echoed(self, model: str, started: Started) -> Iterator[bytes]:
        if not (echo := self._shape.echoes[self._prompt]):
            return
        logprobs = None
        if self._shape.with_logprobs:
            logprobs = self._prompt_logprobs(self._prompt, started.prompt_logprobs)
        first = self._prompt * self._shape.best_of
        for number in range(first, first + self._shape.best_of):
            yield self._chunk(model, TextChoice(index=number, text=echo, logprobs=logprobs))

    def _logprobs(self, tokens: Iterable[TokenLogprob], number: int) -> TextLogprobs:
        logprobs = _no_logprobs()
        _extend(logprobs, tokens, self._offsets[number])
        return logprobs

    def _prompt_logprobs(self, prompt: int, tokens: Iterable[TokenLogprob]) -> TextLogprobs:
        """Log-probabilities of the echoed prompt.

        A begin token, or SentencePiece's first space, writes text that the prompt does not have. The offsets skip it.
        """
        logprobs = _no_logprobs()
        offsets = _Offsets(0)
        _extend(logprobs, tokens, offsets)
        before = max(0, offsets.end - len(self._shape.echoes[prompt]))
        logprobs.text_offset = [max(0, offset - before) for offset in logprobs.text_offset]
        if logprobs.tokens:
            logprobs.token_logprobs[0] = logprobs.top_logprobs[0] = None
        return logprobs

    def _chunk(self, model: str, *choices: TextChoice, usage: Usage | None = None) -> bytes:
        chunk = self._completion(model, list(choices), usage=usage)
        if self._shape.with_usage and usage is None:
            chunk.usage = None
        return frame(chunk)

    def _completion(self, model: str, choices: list[TextChoice], *, usage: Usage | None) -> Completion:
        completion = Completion(
            id=self._shape.id,
            created=self._created,
            model=model,
            choices=choices,
            system_fingerprint=fingerprint(model),
        )
        if usage is not None:
            completion.usage = usage_of(usage)
        return completion


class _Offsets:
    """The character offset of each token in the text. A token inside a character has that character's offset."""

    def __init__(self, start: int) -> None:
        self.end = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token: TokenLogprob) -> int:
        start = self.end
        self.end += len(self._decoder.decode(bytes(token.bytes)))
        return start


def _no_logprobs() -> TextLogprobs:
    return TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])


def _extend(logprobs: TextLogprobs, tokens: Iterable[TokenLogprob], offsets: _Offsets) -> None:
    for token in tokens:
        logprobs.tokens.append(_name(token))
        logprobs.token_logprobs.append(max(token.logprob, LOGPROB_FLOOR))
        logprobs.top_logprobs.append({_name(t): max(t.logprob, LOGPROB_FLOOR) for t in (*token.top, token)})
        logprobs.text_offset.append(offsets.next(token))


def _name(token: TokenLogprob) -> str:
    """The token's text; OpenAI's "bytes:" form if its bytes are not valid UTF-8."""
    if "\ufffd" not in token.token:
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def _mean_logprob(choice: CollectedChoice) -> float:
    tokens = choice.logprobs
    return sum(token.logprob for token in tokens) / len(tokens) if tokens else LOGPROB_FLOOR
