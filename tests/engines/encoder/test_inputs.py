"""What the prompt process gets of long inputs."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.bundles.encoder.bundle import EncoderInfo
from gateway.embedding import Inputs
from gateway.engines.encoder.inputs import encode
from gateway.engines.local.prompts import Prompts
from gateway.prompts.messages import EncodedInputs, EncodeInputs

LONG = "q" * 100_000


class Recorder:
    """Has `encode_inputs` of Prompts."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    async def encode_inputs(self, request: EncodeInputs, client: str) -> EncodedInputs:
        self.parts += [*request.texts, *(part for pair in request.pairs for part in pair)]
        count = len(request.texts) + len(request.pairs)
        return EncodedInputs(ids=[[1]] * count, firsts=[1] * len(request.pairs))


@pytest.mark.parametrize("inputs", [Inputs(pairs=((LONG, "document"),) * 9), Inputs(texts=(LONG, "text"))])
def test_prompt_process_gets_one_character_more_than_it_encodes(inputs: Inputs) -> None:
    """The query of a ranking goes there with each document: megabytes of it would go there 2048 times."""
    recorder, info = Recorder(), EncoderInfo(kind="embedding", architecture="bert", longest=8, vocab=9)
    found = asyncio.run(encode(inputs, cast(Prompts, recorder), info, 8, "client"))
    assert len(found.ids) == inputs.count
    assert sorted({len(part) for part in recorder.parts}) == [len((inputs.texts or inputs.pairs[0])[1]), 64 * 8 + 1]
