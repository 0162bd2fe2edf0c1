"""What is read otherwise than a configuration says, as sentences and as a file that needs no correction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.pull.examine.corrections import Corrections, correct_genai, correct_genie, write_corrected

ADDED = {"added_tokens": [{"id": 3, "content": "<end>"}]}


def dialog(change: Callable[[dict[str, Any]], object] = lambda dialog: None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "basic",
        "context": {"size": 64, "n-vocab": 9, "eos-token": 3, "bos-token": 1},
        "tokenizer": {"path": "tokenizer.json"},
        "engine": {
            "backend": {"type": "QnnHtp", "QnnHtp": {"poll": False}, "extensions": "htp.json"},
            "model": {"binary": {"ctx-bins": ["a.bin"]}},
        },
    }
    change(made)
    return made


def genie(folder: Path, content: dict[str, Any], names: set[str]) -> Corrections:
    (folder / "genie_config.json").write_text(json.dumps({"dialog": content}), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(ADDED), encoding="utf-8")
    return correct_genie(folder, names)


NAMES = {"a.bin", "tokenizer.json", "htp.json"}
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "poll": (lambda made: made["engine"]["backend"]["QnnHtp"].update(poll=True), "`poll` is off"),
    "bos null": (lambda made: made["context"].update({"bos-token": None}), "`bos-token` is null or missing"),
    "bos absent": (lambda made: made["context"].pop("bos-token"), "`bos-token` is null or missing"),
    "eot": (lambda made: made["context"].update({"eot-token": 7}), "`eot-token` 7 is an ordinary token"),
    "paths": (
        lambda made: made["engine"]["model"]["binary"].update({"ctx-bins": ["genie\\models\\a.bin"]}),
        "paths of another machine, such as 'genie\\\\models\\\\a.bin'",
    ),
    "extensions": (lambda made: made["engine"]["backend"].update(extensions="x/gone.json"), "gone.json is missing"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_genie_correction_is_named_and_needs_no_other(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    found = genie(tmp_path, dialog(change), NAMES)
    (sentence,) = found.sentences
    assert sentence.startswith(words)
    before = (tmp_path / "genie_config.json").read_bytes()
    (written,) = write_corrected(tmp_path / "mended", found)
    assert (tmp_path / "genie_config.json").read_bytes() == before
    again = genie(tmp_path, json.loads(written.read_text(encoding="utf-8"))["dialog"], NAMES)
    assert again == Corrections([]) and write_corrected(tmp_path / "none", again) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda made: None,
        lambda made: made["context"].update({"bos-token": -1}),
        lambda made: made["context"].update({"eot-token": 3}),
    ],
)
def test_clean_genie_configuration_needs_none(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    assert genie(tmp_path, dialog(change), NAMES) == Corrections([])


def test_genai_corrections(tmp_path: Path) -> None:
    options = {"provider_options": [{"qnn": {"backend_path": "C:\\QnnHtp.dll", "soc_model": "60", "x": "1"}}]}
    stage = {"prompt": {"filename": "a.onnx", "session_options": options}}
    model = {"type": "t", "pad_token_id": [5, 6], "decoder": {"pipeline": [stage]}}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": model}), encoding="utf-8")
    found = correct_genai(tmp_path)
    assert [sentence.split(":")[0] for sentence in found.sentences] == [
        "`pad_token_id` is a list",
        "options of the machine where it was made are ignored",
    ]
    content = found.content["model"]
    assert content["pad_token_id"] == 5
    assert content["decoder"]["pipeline"][0]["prompt"]["session_options"]["provider_options"] == [{"qnn": {"x": "1"}}]
