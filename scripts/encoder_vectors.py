"""Computes the vectors of small random encoders with `transformers`: the references of tests/builder/encoders/.

    python3 -m venv FOLDER && FOLDER/bin/pip install torch==2.13.0 transformers==5.24.0
    FOLDER/bin/python -m scripts.encoder_vectors [MINILM]

Writes tests/support/encoders/vectors.json. CI reads this file and does not install torch. The weights are not in it:
tests/support/encoders/models.py makes them again. With MINILM, the folder of
all-MiniLM-L6-v2, it writes the vectors of sentence-transformers' recipe for real texts: minilm.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tests.support.encoders.models import CASES, FIRSTS, MINILM_TEXTS, TEXTS, write_folder

FILE = Path(__file__).parent.parent / "tests/support/encoders/vectors.json"


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        return _write_minilm(Path(sys.argv[1]))
    found = {}
    for name, (config, pooling, is_normalised) in CASES.items():
        kind = AutoModel if pooling else AutoModelForSequenceClassification
        made = kind.from_config(AutoConfig.for_model(**config), attn_implementation="eager")
        with tempfile.TemporaryDirectory() as folder:
            made.save_pretrained(folder, safe_serialization=True)  # the names of published files
            shapes = _shapes(Path(folder))
            path = write_folder(Path(folder) / "own", name, shapes)
            model, report = kind.from_pretrained(path, attn_implementation="eager", output_loading_info=True)
        assert not (report["missing_keys"] or report["unexpected_keys"]), (name, report)
        rows = [
            _row(model.float().eval(), ids, first, pooling, is_normalised)
            for ids, first in zip(TEXTS, FIRSTS, strict=True)
        ]
        found[name] = {"shapes": shapes, "rows": [[round(value, 7) for value in row] for row in rows]}
        print(name, len(shapes), [round(value, 4) for value in rows[0][:3]])
    FILE.write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


def _write_minilm(folder: Path) -> None:
    """Mean of the hidden states of at most 256 tokens, with length 1."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = {}
    for text in MINILM_TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        row = torch.nn.functional.normalize(hidden.mean(0), dim=-1).tolist()
        found[text] = [inputs["input_ids"].shape[1], *(round(value, 6) for value in row)]
    (FILE.parent / "minilm.json").write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


def _shapes(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {
            name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys()) if "position_ids" not in name
        }


def _row(model: Any, ids: list[int], first: int, pooling: str, is_normalised: bool) -> list[float]:
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if not pooling and model.config.model_type == "bert":
        inputs["token_type_ids"] = torch.tensor([[int(k >= first) for k in range(len(ids))]])
    with torch.no_grad():
        output = model(**inputs)
    if not pooling:
        score: list[float] = torch.sigmoid(output.logits[0]).tolist()
        return score
    hidden = output.last_hidden_state[0]
    pooled = {
        "mean_tokens": lambda: hidden.mean(0),
        "cls_token": lambda: hidden[0],
        "max_tokens": lambda: hidden.max(0).values,
        "lasttoken": lambda: hidden[-1],
    }[pooling]()
    row: list[float] = (torch.nn.functional.normalize(pooled, dim=-1) if is_normalised else pooled).tolist()
    return row


if __name__ == "__main__":
    main()
