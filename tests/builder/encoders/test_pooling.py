"""The files of sentence-transformers: a wrong value is one sentence with the file, or is as if it were not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.builder.encoders.pooling import SentenceSettings, read_sentence_settings
from gateway.errors import BundleError

_GOOD = {
    "modules.json": [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}],
    "1_Pooling/config.json": {"pooling_mode": "cls"},
}


def settings_of(folder: Path, files: dict[str, Any]) -> SentenceSettings:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return read_sentence_settings(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("modules.json", [{}], "modules.json cannot be read: .*`type`"),
        ("modules.json", [{"type": "a.Pooling", "path": 1}], "modules.json cannot be read: .*path"),
        ("modules.json", [{"type": "a.Pooling", "path": "none"}], "Only one pooling"),
        ("1_Pooling/config.json", [], "config.json cannot be read"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "sentence_bert_config.json cannot be read"),
        ("config_sentence_transformers.json", {"prompts": 1}, "config_sentence_transformers.json cannot be read"),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "transformers.json cannot be read"),
        ("config_sentence_transformers.json", {"default_prompt_name": [1]}, "transformers.json cannot be read"),
    ],
    ids=str,
)
def test_wrong_value_names_its_file(tmp_path: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        settings_of(tmp_path, _GOOD | {name: content})


def test_length_that_no_text_has_is_not_used(tmp_path: Path) -> None:
    for number in (-1, 0, 0.5, 10**30, "long"):
        assert settings_of(tmp_path, {"tokenizer_config.json": {"model_max_length": number}}).longest is None
    assert settings_of(tmp_path, {"sentence_bert_config.json": {"max_seq_length": 128}}).longest == 128


def test_prompt_that_is_null_is_none(tmp_path: Path) -> None:
    prompts = {"query": None, "document": "d: "}
    assert settings_of(tmp_path, {"config_sentence_transformers.json": {"prompts": prompts}}).prefixes == {
        "document": "d: "
    }
