"""End tokens: the union of every source, in a Hugging Face folder and in a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.builder.sources.detect import open_source
from gateway.builder.sources.end_tokens import end_ids
from gateway.dialects.choose import choose_dialect
from tests.support.family_templates import FAMILIES
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf


def tokenizer(*added: tuple[int, str], **vocab: int) -> str:
    tokens = [{"id": index, "content": text, "special": True} for index, text in added]
    return json.dumps({"added_tokens": tokens, "model": {"type": "BPE", "vocab": vocab}})


@pytest.mark.parametrize(
    ("named", "eos_token", "text", "expected"),
    [
        ((None, None), None, "", ()),
        ((2, None), None, "", (2,)),
        ((None, [7, 8]), None, "", (7, 8)),
        (([8, 7], 7), None, "", (8, 7)),
        ((0,), "<|im_end|>", tokenizer((0, "x"), (2, "<|im_end|>")), (0, 2)),
        ((0,), {"content": "stop", "lstrip": False}, tokenizer((5, "stop")), (0, 5)),
        ((0,), "end", tokenizer(end=9), (0, 9)),
        ((0,), None, tokenizer((3, "<|eot_id|>"), (4, "<end_of_turn>"), (5, "<|im_start|>")), (0, 3, 4)),
        ((0,), "missing", tokenizer(), (0,)),
        ((0,), "missing", '{"model": {"vocab": [["a", 1.0]]}}', (0,)),
        ((0,), "x", "not JSON", (0,)),
    ],
)
def test_union_of_all_sources(named: tuple[Any, ...], eos_token: Any, text: str, expected: tuple[int, ...]) -> None:
    assert end_ids(*named, eos_token=eos_token, tokenizer_json=text) == expected


def test_end_of_turn_of_the_tokenizer_ends_an_answer(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m", eos_token_id=0)
    (folder / "generation_config.json").unlink()
    assert open_source(folder).config.eos_ids == (0, 2)  # <|endoftext|> of config.json, <|im_end|> of the tokenizer


def test_every_file_of_the_folder_counts(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m", eos_token_id=[9, 2])
    (folder / "generation_config.json").write_text('{"eos_token_id": [5]}', encoding="utf-8-sig")
    assert open_source(folder).config.eos_ids == (5, 9, 2, 0)


@pytest.mark.parametrize("kind", [3, 4])
def test_end_of_turn_keys_and_tokens_of_a_gguf_file_count(tmp_path: Path, kind: int) -> None:
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf",
        tokenizer__ggml__eos_token_id=0,
        tokenizer__ggml__eot_token_id=7,
        tokenizer__ggml__eom_token_id=8,
        tokenizer__ggml__token_type=[3, 3, kind, *[1] * 381],
    )
    assert open_source(path).config.eos_ids == (0, 7, 8, 2)


@pytest.mark.parametrize(
    ("family", "tokens", "named", "ends", "dialect"),
    [
        ("Qwen3", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), [2, 0], [2, 0], "qwen"),
        ("Phi-3.5", ("<s>", "<|endoftext|>", "<|end|>"), 1, [1, 2], "generic"),
        ("Phi-4-mini", ("<|endoftext|>", "<|user|>", "<|end|>"), 0, [0, 2], "phi"),
        ("Granite 3", ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), 0, [0], "granite"),
        ("OLMo 2", ("<|endoftext|>", "<|user|>", "<|assistant|>"), 0, [0], "generic"),
        ("Gemma 3", ("<pad>", "<eos>", "<end_of_turn>"), 1, [1, 2], "gemma"),
        ("SmolLM3", ("<|end_of_text|>", "<|im_start|>", "<|im_end|>"), 2, [2, 0], "qwen"),
    ],
)
def test_published_family_gets_its_dialect_and_every_end(
    tmp_path: Path, family: str, tokens: tuple[str, ...], named: Any, ends: list[int], dialect: str
) -> None:
    """As the files of the family name them: `named` is the end in config.json."""
    folder = write_tiny_folder(tmp_path / "m", special_tokens=tokens, eos_token_id=named)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": FAMILIES[family]}), encoding="utf-8")
    source = open_source(folder)
    assert list(source.config.eos_ids) == ends
    assert choose_dialect("", source.tokenizer_config()["chat_template"]).name == dialect


def test_tokenizer_that_is_nested_too_deeply_names_no_end() -> None:
    """The build refuses it when it needs the tokenizer."""
    deep = "[" * 100_000 + "]" * 100_000
    for text in (f'{{"other": {deep}}}', f'{{"model": {{"vocab": {{"a": {deep}}}}}}}'):
        assert end_ids(7, eos_token="</s>", tokenizer_json=text) == (7,)
