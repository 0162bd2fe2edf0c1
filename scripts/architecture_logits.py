"""Computes the logits of small random models with `transformers`: the references of tests/builder/architectures/.

    python3 -m venv FOLDER && FOLDER/bin/pip install torch==2.13.0 transformers==5.24.0
    FOLDER/bin/python -m scripts.architecture_logits [NAME ...]

Writes tests/support/architectures/NAME.json and NAME.npz. CI reads these files and does not install torch. The weights
are not in the files: tests/support/architectures/random_weights.py makes them again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.architectures.cases import CASES
from tests.support.architectures.random_weights import random_weights

FOLDER = Path(__file__).parent.parent / "tests/support/architectures"
_PROMPT, _GREEDY = 72, 16  # tokens; longer than each window and each original context
_MARGIN = 0.01  # least distance of a greedy choice to the second, in parts of the largest logit


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        for seed in range(100):
            if _write(name, CASES[name], seed):
                break


def _write(name: str, settings: dict[str, Any], seed: int) -> bool:
    """False if a greedy choice is close to another."""
    model, weights = _model(settings, seed)
    prompt = np.random.default_rng(seed).integers(3, settings["vocab_size"], _PROMPT).tolist()
    ids = list(prompt)
    for _ in range(_GREEDY):
        ids.append(int(_logits(model, ids)[-1].argmax()))
    logits = _logits(model, ids[:-1])
    best = np.sort(logits[_PROMPT - 1 :], axis=-1)
    if (best[:, -1] - best[:, -2]).min() < _MARGIN * np.abs(logits).max() or len(set(ids[_PROMPT:])) < _GREEDY // 2:
        return False
    content = {
        "config": model.config.to_diff_dict() | settings,
        "seed": seed,
        "prompt": prompt,
        "answer": ids[_PROMPT:],
    }
    content["tensors"] = {key: list(values.shape) for key, values in weights.items()}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER / f"{name}.npz", logits=logits)
    print(f"{name}: seed {seed}, largest logit {np.abs(logits).max():.2f}")
    return True


def _model(settings: dict[str, Any], seed: int) -> tuple[Any, dict[str, Any]]:
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    shapes = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    if settings.get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    weights = random_weights(shapes, seed)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, strict=False)
    model.tie_weights()
    return model, weights


def _logits(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


if __name__ == "__main__":
    main()
