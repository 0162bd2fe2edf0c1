"""The end tokens of a bundle: those of its graphs, and the one of its tokenizer's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.bundles.bundle import load_bundle
from gateway.engines.local.prompts import Prompts


@pytest.mark.parametrize(
    ("eos_token", "expected"),
    [
        ("<|im_end|>", [0, 2]),
        ({"content": "<|im_end|>"}, [0, 2]),
        ("<|endoftext|>", [0]),
        ("missing", [0]),
        (None, [0]),
    ],
)
async def test_end_token_of_the_tokenizer_ends_answers_too(tiny: Path, eos_token: Any, expected: list[int]) -> None:
    bundle = load_bundle(tiny)
    config = msgspec.structs.replace(bundle.config, eos_ids=(0,))
    tokenizer_config = bundle.tokenizer_config | {"eos_token": eos_token}
    prompts = Prompts(msgspec.structs.replace(bundle, config=config, tokenizer_config=tokenizer_config), "")
    await prompts.start()
    assert prompts.end_ids == expected
    await prompts.aclose()
