"""Reads the references that scripts/architecture_logits.py has computed, and makes the models again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.support.architectures.random_weights import random_weights

_FOLDER = Path(__file__).parent


class Reference(Struct, frozen=True, kw_only=True):
    """A small random model, and what `transformers` computes for it. `logits`: (prompt + answer - 1, vocab)."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, list[int]]
    seed: int
    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        """The tokens whose logits are known."""
        return [*self.prompt, *self.answer[:-1]]

    def logits(self) -> NDArray[np.float32]:
        with np.load(_FOLDER / f"{self.name}.npz") as file:
            return np.asarray(file["logits"])

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return random_weights(self.tensors, self.seed)

    def write_folder(self, folder: Path) -> Path:
        """The model as a Hugging Face folder, without a tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        save_file(self.weights(), folder / "model.safetensors")
        return folder


def reference(name: str) -> Reference:
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Reference(name=name, **content)
