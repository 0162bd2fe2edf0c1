"""Texts and pairs of texts to the token ids for an encoder."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.errors import ContextLengthExceeded, InvalidRequest
from gateway.prompts.messages import EncodedInputs, EncodeInputs
from gateway.text.tokens import TextTokenizer


def encode_inputs(tokens: TextTokenizer, request: EncodeInputs) -> EncodedInputs:
    """Raises ContextLengthExceeded for a too long text if `truncate` is false, InvalidRequest for an empty text."""
    if not (request.texts or request.pairs):
        return EncodedInputs(ids=list(tokens.input_ends()))
    ids, firsts, cut = [], [], 0
    for index, (text, second) in enumerate(_parts(request), request.start):
        where = f"{request.param}.{index}"
        limit = request.most_characters
        is_long = len(text) + len(second or "") > limit
        text, second = _prepared(text[:limit], request), second and _lower(second[:limit], request)
        own, first, is_cut = tokens.encode_input(text, second, request.longest)
        if (is_long or is_cut) and not request.truncate:
            raise ContextLengthExceeded(
                f"The text '{where}' is too long: this model reads at most {request.longest} tokens. Split it into "
                "shorter texts, or let the gateway cut it.",
                param=request.param,
            )
        if not own:  # of a text of spaces, most tokenizers still make their begin and end tokens
            raise InvalidRequest(f"The text '{where}' is empty.", param=request.param)
        cut += is_long or is_cut
        ids.append(own)
        firsts.append(first)
    return EncodedInputs(ids=ids, firsts=firsts if request.pairs else [], cut=cut)


def _parts(request: EncodeInputs) -> Iterator[tuple[str, str | None]]:
    yield from ((text, None) for text in request.texts)
    yield from request.pairs


def _prepared(text: str, request: EncodeInputs) -> str:
    return _lower(request.prefix + text, request)


def _lower(text: str, request: EncodeInputs) -> str:
    return text.lower() if request.lower_case else text
