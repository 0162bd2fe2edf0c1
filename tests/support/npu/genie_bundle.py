"""Writes a bundle in Genie's layout around the tiny decoder, with a tokenizer of single characters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.support.npu.tiny_htp_decoder import PROMPT_WIDTH, TinyDecoder

SPECIAL_TOKENS = ("<unk>", "<|im_start|>", "<|endoftext|>", "<|im_end|>")
BEGIN, END = 1, 3


def write_genie_bundle(folder: Path, binaries: Sequence[Path], decoder: TinyDecoder | None = None) -> Path:
    """Write the bundle. Returns: the path of its config.json."""
    decoder = decoder or TinyDecoder()
    folder.mkdir(parents=True)
    for binary in binaries:
        shutil.copyfile(binary, folder / binary.name)
    tokenizer(decoder.vocab_size).save(str(folder / "tokenizer.json"))
    _write(folder / "htp_backend_ext_config.json", _EXTENSIONS)
    graphs = [f"ar{width}_cl{decoder.context}_1_of_1" for width in (PROMPT_WIDTH, 1)]
    _write(folder / "metadata.json", {"graphs": {graph: {} for graph in graphs}})
    return _write(folder / "config.json", config(decoder, [binary.name for binary in binaries]))


def config(decoder: TinyDecoder, binaries: Sequence[str]) -> dict[str, Any]:
    htp = {
        "version": 1,
        "use-mmap": False,
        "spill-fill-bufsize": 0,
        "mmap-budget": 0,
        "poll": False,
        "pos-id-dim": decoder.head_dim // 2,
        "cpu-mask": "0x1",
        "kv-dim": decoder.head_dim,
        "rope-theta": 10000,
    }
    backend = {"version": 1, "type": "QnnHtp", "QnnHtp": htp, "extensions": "htp_backend_ext_config.json"}
    model = {"version": 1, "type": "binary", "binary": {"version": 1, "ctx-bins": list(binaries)}}
    return {
        "dialog": {
            "version": 1,
            "type": "basic",
            "context": {
                "version": 1,
                "size": decoder.context,
                "n-vocab": decoder.vocab_size,
                "bos-token": BEGIN,
                "eos-token": END,
            },
            "sampler": {"version": 1, "seed": 42, "temp": 0.8, "top-k": 1, "top-p": 0.95},
            "tokenizer": {"version": 1, "path": "tokenizer.json"},
            "engine": {"version": 1, "n-threads": 1, "backend": backend, "model": model},
        }
    }


def tokenizer(vocab_size: int) -> Tokenizer:
    """One token per visible ASCII character, space and newline. The token of `!` is the tiny decoder's stop trigger."""
    tokens = [*SPECIAL_TOKENS, *map(chr, range(33, 127)), "\u0120", "\u010a"]
    tokens += [f"<spare_{index}>" for index in range(vocab_size - len(tokens))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL_TOKENS))
    return made


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


_CORE = {"core_id": 0, "perf_profile": "burst", "rpc_control_latency": 100}
_EXTENSIONS = {"devices": [{"soc_model": 60, "dsp_arch": "v73", "cores": [_CORE]}]}
