"""Small random encoders, the same in each run: for scripts/encoder_vectors.py and for the tests.

The script computes what `transformers` gives for them; tests/support/encoders/vectors.json has the results.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = 96
_COMMON = {"vocab_size": WORDS, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "pad_token_id": 0}
_BERT = _COMMON | {"num_attention_heads": 3, "max_position_embeddings": 64, "hidden_act": "gelu"}
_ROBERTA = _BERT | {"model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_MODERN = _COMMON | {
    "model_type": "modernbert",
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "global_attn_every_n_layers": 3,
    "classifier_pooling": "mean",
    "reference_compile": False,
}
_SCORE = {"num_labels": 1, "id2label": {"0": "LABEL_0"}}

#: name -> config.json, the pooling of 1_Pooling/config.json ("": a cross-encoder), and whether vectors have length 1.
CASES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "bert-mean": (_BERT | {"model_type": "bert", "architectures": ["BertModel"]}, "mean_tokens", True),
    "bert-cls": (_BERT | {"model_type": "bert", "hidden_act": "gelu_new"}, "cls_token", True),
    "bert-max": (_BERT | {"model_type": "bert", "hidden_act": "relu"}, "max_tokens", False),
    "xlm-roberta": (_ROBERTA, "cls_token", True),
    "nomic": (
        _COMMON
        | {"model_type": "nomic_bert", "num_attention_heads": 3, "max_position_embeddings": 64, "hidden_act": "silu"}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}, "type_vocab_size": 2},
        "mean_tokens",
        True,
    ),
    "modernbert": (_MODERN, "mean_tokens", True),
    "qwen3": (
        _COMMON
        | {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        | {"max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        "lasttoken",
        True,
    ),
    "bert-cross": (
        _BERT | _SCORE | {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
        "",
        False,
    ),
    "xlm-roberta-cross": (_ROBERTA | _SCORE | {"architectures": ["XLMRobertaForSequenceClassification"]}, "", False),
    "modernbert-cross": (_MODERN | _SCORE | {"architectures": ["ModernBertForSequenceClassification"]}, "", False),
}

#: Token ids of texts of several lengths, longer than the window of ModernBERT, and with the special tokens.
TEXTS = [[3, *range(5, 5 + 7), 4], [3, *(5 + 11 * k % 80 for k in range(40)), 4], [3, 20, 4]]
FIRSTS = [4, 12, 2]  # of a pair: the tokens of the first text


#: For the real model.
MINILM_TEXTS = (
    "A cat sits on the mat.",
    "Wie kann ich mein Passwort zur\u00fccksetzen?",
    "def add(a, b):\n    return a + b",
    "hi",
    "\u304a\u306f\u3088\u3046\u3054\u3056\u3044\u307e\u3059\u3001\u4eca\u65e5\u306f\u3044\u3044\u5929\u6c17\u3067\u3059\u306d\u3002",
    "The mitochondrion is the powerhouse of the cell. " * 40,  # above 256 tokens
)


def weights(shapes: Mapping[str, list[int]]) -> dict[str, NDArray[np.float32]]:
    """Values that depend only on the name and the shape of a tensor."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = random.standard_normal(shape)
    if len(shape) > 1:
        return np.asarray(values * (1.5 / np.sqrt(shape[-1])), np.float32)
    return np.asarray(0.1 * values + (0.0 if name.endswith("bias") else 1.0), np.float32)


def write_folder(folder: Path, name: str, shapes: Mapping[str, list[int]]) -> Path:
    """The model as a folder of sentence-transformers, with a tokenizer of words."""
    config, pooling, is_normalised = CASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", config)
    save_file(weights(shapes), folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    if pooling:
        kinds = [
            ("Transformer", ""),
            ("Pooling", "1_Pooling"),
            *([("Normalize", "2_Normalize")] if is_normalised else []),
        ]
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
        _write(folder / "modules.json", modules)
        (folder / "1_Pooling").mkdir(exist_ok=True)
        _write(folder / "1_Pooling" / "config.json", {f"pooling_mode_{pooling}": True, "word_embedding_dimension": 48})
    return folder


def tokenizer() -> Tokenizer:
    """One token for each of the words w5, w6, ...: [CLS] is 3, [SEP] 4."""
    vocab = {"[PAD]": 0, "<pad>": 1, "[UNK]": 2, "[CLS]": 3, "[SEP]": 4} | {f"w{i}": i for i in range(5, WORDS)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[PAD]", "<pad>", "[UNK]", "[CLS]", "[SEP]"])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
    )
    made.enable_truncation(16)  # as published files have it; a bundle leaves it out
    made.enable_padding(length=16)
    return made


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
