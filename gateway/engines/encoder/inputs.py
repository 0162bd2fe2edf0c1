"""From the inputs of a request to token ids, in the prompt process.

Token ids that a client made are accepted if they begin and end with the special tokens of this model. Many programs
(LangChain by default) send those of OpenAI's tokenizer to every server: vectors of other words, which look right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from msgspec.structs import replace

from gateway.bundles.encoder.bundle import EncoderInfo
from gateway.embedding import Inputs
from gateway.engines.local.prompts import Prompts
from gateway.errors import ContextLengthExceeded, InvalidRequest
from gateway.prompts.messages import EncodedInputs, EncodeInputs

_GROUP = 48 * 1024  # characters of one request to the prompt process, so that clients take turns

T = TypeVar("T", str, tuple[str, str])


async def encode(inputs: Inputs, prompts: Prompts, info: EncoderInfo, longest: int, client: str) -> EncodedInputs:
    """Token ids of each text or pair, and for pairs the tokens of the first text.

    Raises InvalidRequest, ContextLengthExceeded, ModelNotReady.
    """
    request = EncodeInputs(
        param=inputs.param,
        prefix=info.prefixes.get(inputs.purpose, info.prefixes.get("", "")),
        lower_case=info.lower_case,
        longest=longest,
        truncate=inputs.truncate,
    )
    ids: list[list[int]] = []
    firsts: list[int] = []
    cut = 0
    most = request.most_characters + 1  # a longer one is refused or cut: the query is sent with each document
    for start, pairs in _groups((first[:most], second[:most]) for first, second in inputs.pairs):
        encoded = await prompts.encode_inputs(replace(request, pairs=pairs, start=start), client)
        ids += encoded.ids
        firsts += encoded.firsts
        cut += encoded.cut
    if inputs.pairs:
        return EncodedInputs(ids=ids, firsts=firsts, cut=cut)
    texts = [(index, text) for index, text in enumerate(inputs.texts) if isinstance(text, str)]
    found: dict[int, list[int]] = {}
    for first, group in _groups(text[:most] for _, text in texts):
        numbers = [index for index, _ in texts[first : first + len(group)]]
        encoded = await prompts.encode_inputs(replace(request, texts=group, start=numbers[0]), client)
        found |= zip(numbers, encoded.ids, strict=True)
        cut += encoded.cut
    if len(texts) < len(inputs.texts):
        ends = await _ends(prompts, request, client)
        for index, text in enumerate(inputs.texts):
            if not isinstance(text, str):
                found[index] = _own_ids(text, index, inputs, prompts, longest, ends)
                cut += len(text) > longest
    return EncodedInputs(ids=[found[index] for index in range(len(inputs.texts))], firsts=[], cut=cut)


def check_known(ids: Iterable[Sequence[int]], prompts: Prompts, info: EncoderInfo, param: str) -> None:
    """Raise InvalidRequest for a token that only the tokenizer has: the device could not look it up."""
    if prompts.tokens.vocab_size <= info.vocab:
        return
    for index, text in enumerate(ids):
        if (largest := max(text)) >= info.vocab:
            raise InvalidRequest(
                f"The text '{param}.{index}' has the token {largest}, and the model knows only {info.vocab}.",
                param=param,
            )


async def _ends(prompts: Prompts, request: EncodeInputs, client: str) -> tuple[list[int], list[int]]:
    """The special tokens before and after each text of the model."""
    before, after = (await prompts.encode_inputs(replace(request, texts=[]), client)).ids
    return before, after


def _own_ids(
    ids: tuple[int, ...],
    index: int,
    inputs: Inputs,
    prompts: Prompts,
    longest: int,
    ends: tuple[list[int], list[int]],
) -> list[int]:
    """Token ids that the client made. `ends`: what they must begin and end with."""
    where = f"{inputs.param}.{index}"
    if not ids:
        raise InvalidRequest(f"The text '{where}' is empty.", param=inputs.param)
    before, after = ends
    is_framed = list(ids[: len(before)]) == before and list(ids[len(ids) - len(after) :]) == after
    if not is_framed or len(ids) < len(before) + len(after):
        raise InvalidRequest(
            f"The token ids '{where}' are not those of this model: they begin with {before} and end with {after}. "
            "Send the text itself; in LangChain, set check_embedding_ctx_length=False.",
            param=inputs.param,
        )
    prompts.tokens.check_ids(ids[:longest], inputs.param)
    if len(ids) > longest and not inputs.truncate:
        raise ContextLengthExceeded(
            f"The text '{where}' has {len(ids)} tokens, and this model reads at most {longest}. Split it into shorter "
            "texts.",
            param=inputs.param,
        )
    return list(ids) if len(ids) <= longest else [*ids[: longest - len(after)], *after]


def _groups(parts: Iterable[T]) -> Iterator[tuple[int, list[T]]]:
    """The parts in groups of about `_GROUP` characters, each with the index of its first part."""
    start, group, size = 0, list[T](), 0
    for index, part in enumerate(parts):
        length = len(part) if isinstance(part, str) else sum(map(len, part))
        if group and size + length > _GROUP:
            yield start, group
            start, group, size = index, [], 0
        group.append(part)
        size += length + 8
    if group:
        yield start, group
