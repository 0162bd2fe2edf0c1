"""From the inputs of a request to token ids, in the prompt process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from msgspec.structs import replace

from gateway.bundles.encoder.bundle import EncoderInfo
from gateway.embedding import Inputs
from gateway.engines.local.prompts import Prompts
from gateway.errors import ContextLengthExceeded, InvalidRequest
from gateway.prompts.messages import EncodeInputs

_GROUP = 48 * 1024  # characters of one request to the prompt process, so that clients take turns

T = TypeVar("T", str, tuple[str, str])


async def encode(
    inputs: Inputs, prompts: Prompts, info: EncoderInfo, longest: int, client: str
) -> tuple[list[list[int]], list[int]]:
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
    for start, pairs in _groups(inputs.pairs):
        encoded = await prompts.encode_inputs(replace(request, pairs=pairs, start=start), client)
        ids += encoded.ids
        firsts += encoded.firsts
    if inputs.pairs:
        return ids, firsts
    texts = [(index, text) for index, text in enumerate(inputs.texts) if isinstance(text, str)]
    found: dict[int, list[int]] = {}
    for first, group in _groups(tuple(text for _, text in texts)):
        numbers = [index for index, _ in texts[first : first + len(group)]]
        encoded = await prompts.encode_inputs(replace(request, texts=group, start=numbers[0]), client)
        found |= zip(numbers, encoded.ids, strict=True)
    for index, text in enumerate(inputs.texts):
        if not isinstance(text, str):
            found[index] = _own_ids(text, index, inputs, prompts, longest)
    return [found[index] for index in range(len(inputs.texts))], []


def _own_ids(ids: tuple[int, ...], index: int, inputs: Inputs, prompts: Prompts, longest: int) -> list[int]:
    """Token ids that the client made."""
    where = f"{inputs.param}.{index}"
    if not ids:
        raise InvalidRequest(f"The text '{where}' is empty.", param=inputs.param)
    prompts.tokens.check_ids(ids[:longest], inputs.param)
    if len(ids) > longest and not inputs.truncate:
        raise ContextLengthExceeded(
            f"The text '{where}' has {len(ids)} tokens, and this model reads at most {longest}. Split it into shorter "
            "texts.",
            param=inputs.param,
        )
    return list(ids[:longest])


def _groups(parts: tuple[T, ...]) -> Iterator[tuple[int, list[T]]]:
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
