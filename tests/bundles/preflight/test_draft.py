"""Which models can draft for which, by their tokens and their kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.encoder.bundle import ENCODER_FILE
from gateway.bundles.preflight import draft
from gateway.bundles.preflight.draft import check_draft, check_vocabularies
from gateway.errors import BundleError


def with_tokenizer(tiny: Path, folder: Path, change: Any) -> Path:
    """A copy of the bundle with another tokenizer.json."""
    copy = Path(shutil.copytree(tiny, folder / "small"))
    content = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return copy


def shift_all(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {token: (id + 1) % len(vocab) for token, id in vocab.items()}


def rename_two(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {f"<{id}>" if id in (200, 201) else token: id for token, id in vocab.items()}


def as_unigram(content: dict[str, Any]) -> None:
    vocab = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
    content["model"] = {"type": "Unigram", "vocab": [[token, 0.0] for token, _ in vocab]}


@pytest.mark.parametrize("change", [rename_two, as_unigram])
def test_vocabulary_with_the_same_tokens(tiny: Path, tmp_path: Path, change: Any) -> None:
    small = with_tokenizer(tiny, tmp_path, change)
    check_vocabularies("big", tiny / "tokenizer.json", "small", small / "tokenizer.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shift_all, r"small cannot draft for big: only \d of its 384 tokens"),
        (lambda content: content["model"].pop("vocab"), "no vocabulary that can be compared"),
    ],
    ids=["other", "none"],
)
def test_bundle_with_other_tokens_cannot_draft(tiny: Path, tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        check_draft("big", tiny, "", with_tokenizer(tiny, tmp_path, change))
    check_draft("big", tiny, "", tiny)


def test_files_are_read_again_only_after_a_change(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway looks every few seconds until a mistake in its configuration is corrected."""
    read, tokens = list[Path](), draft._tokens
    monkeypatch.setattr(draft, "_tokens", lambda path: read.append(path) or tokens(path))
    small = with_tokenizer(tiny, tmp_path, shift_all)
    for _ in range(3):
        with pytest.raises(BundleError, match="small cannot draft for big"):
            check_draft("big", tiny, "", small)
    assert len(read) == 2
    shutil.copyfile(tiny / "tokenizer.json", small / "tokenizer.json")
    check_draft("big", tiny, "", small)


def test_encoder_cannot_draft(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / ENCODER_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match="is an encoder, which cannot draft for big: change `draft`"):
        check_draft("big", tiny, "", tmp_path)
