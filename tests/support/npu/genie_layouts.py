"""Writes Genie bundles as their exporters write them, around the tiny decoder. Binaries are copied as they are.

geniex         AI Hub today: genie_config.json, metadata.json by graph
geniex-files   the same, metadata.json by binary
genie-yaml     older downloads of AI Hub: metadata.yaml by graph
genie-export   AI Hub's exporter at home: metadata.yaml, graphs called prompt_1_of_1 and token_1_of_1
aidevhome      AI Dev Home and Qualcomm's helper: config.json with paths from elsewhere, prompt.json; no metadata, and
               no htp_backend_ext_config.json, which lies in the helper's folder
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from tests.support.npu.genie_bundle import config, tokenizer
from tests.support.npu.tiny_htp_decoder import CACHE, INPUTS, LOGITS, PROMPT_WIDTH, Encoding, TinyDecoder

Layout = Literal["geniex", "geniex-files", "genie-yaml", "genie-export", "aidevhome"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Change = Callable[[dict[str, Any]], object]

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORE = {"core_id": 0, "perf_profile": "burst", "rpc_control_latency": 100}
_EXTENSIONS = {
    "devices": [{"soc_model": 60, "dsp_arch": "v73", "cores": [_CORE]}],
    "memory": {"mem_type": "shared_buffer"},
    "context": {"weight_sharing_enabled": True},
}
PROMPT_JSON = {
    "prompt_system": "<|im_start|>system\nstring<|im_end|>\n",
    "prompt_user": "<|im_start|>user\nstring<|im_end|>\n",
    "prompt_assistant": "<|im_start|>assistant\nstring<|im_end|>\n",
    "prompt_tool": "<|im_start|>tool\nstring<|im_end|>\n",
    "prompt_start": "<|im_start|>assistant\n",
}


def write_layout(folder: Path, layout: Layout, binaries: Sequence[Path], change: Change = lambda dialog: None) -> Path:
    """Write the bundle into `folder`, as its archive contains it: one folder with the files.

    Args:
        change: changes the table `dialog` of the configuration.
    Returns: the configuration's path.
    """
    decoder, inner = TinyDecoder(), folder / f"tiny_decoder-{layout}"
    inner.mkdir(parents=True)
    for binary in binaries:
        shutil.copyfile(binary, inner / binary.name)
    tokenizer(decoder.vocab_size).save(str(inner / "tokenizer.json"))
    content = {"dialog": _dialog(decoder, [binary.name for binary in binaries], layout)}
    change(content["dialog"])
    if layout == "aidevhome":
        _write_json(inner / "prompt.json", PROMPT_JSON)
        return _write_json(inner / "config.json", content)
    _write_json(inner / "htp_backend_ext_config.json", _EXTENSIONS)
    specials = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write_json(inner / "tokenizer_config.json", specials | {"chat_template": _CHATML, "model_max_length": 131072})
    _write_metadata(inner, layout, decoder, [binary.name for binary in binaries])
    return _write_json(inner / "genie_config.json", content)


def _dialog(decoder: TinyDecoder, binaries: Sequence[str], layout: Layout) -> dict[str, Any]:
    is_helper = layout == "aidevhome"
    home, common = ("genie\\python\\models\\Tiny-7B\\", "genie\\python\\config\\") if is_helper else ("", "")
    dialog: dict[str, Any] = config(decoder, [home + name for name in binaries])["dialog"]
    dialog["sampler"]["top-k"] = 40
    dialog["tokenizer"]["path"] = f"{home}tokenizer.json"
    dialog["engine"]["n-threads"] = 1 if is_helper else 3
    dialog["engine"]["backend"]["extensions"] = f"{common}htp_backend_ext_config.json"
    dialog["engine"]["backend"]["QnnHtp"] |= {
        "use-mmap": not is_helper,
        "spill-fill-bufsize": 0,
        "mmap-budget": 0,
        "poll": True,
        "cpu-mask": "0xe0",
        "allow-async-init": False,
    }
    return dialog


def _write_metadata(folder: Path, layout: Layout, decoder: TinyDecoder, binaries: Sequence[str]) -> None:
    widths = (PROMPT_WIDTH, 1)
    if layout in ("genie-yaml", "genie-export"):
        names = [
            f"ar{width}_cl{decoder.context}_1_of_1" if layout == "genie-yaml" else f"{_phase(width)}_1_of_1"
            for width in widths
        ]
        graphs = {name: graph_metadata(decoder, width, "offset") for name, width in zip(names, widths, strict=True)}
        text = "\n".join(_yaml({"components": graphs, "precision": "w4a16", "runtime": "genie"}))
        (folder / "metadata.yaml").write_text(f"{text}\n", encoding="utf-8")
        return
    keys = binaries if layout == "geniex-files" else [f"ar{width}_cl{decoder.context}_1_of_1" for width in widths]
    metadata = {
        "model_id": "tiny_decoder",
        "model_name": "Tiny-Decoder",
        "runtime": "geniex_qairt",
        "precision": "w4a16",
        "tool_versions": {"qairt": "2.45.0.260326154327", "ai_hub_models": "0.60.0"},
        "chipset_attributes": {"name": "qualcomm-snapdragon-x-elite", "htp_version": 73, "soc_model": 60},
        "genie": {"context_lengths": [decoder.context], "supports_vision": False},
        "model_files": {
            key: graph_metadata(decoder, width, "zero_point") for key, width in zip(keys, widths, strict=False)
        },
        "supplementary_files": {"genie_config.json": "configuration of the runtime", "tokenizer.json": "tokenizer"},
    }
    _write_json(folder / "metadata.json", metadata)


def _phase(width: int) -> str:
    return "prompt" if width > 1 else "token"


def graph_metadata(decoder: TinyDecoder, width: int, zero: Literal["offset", "zero_point"]) -> dict[str, Any]:
    """The inputs and outputs of the graph for `width` tokens. Older exports have `offset`, the negative zero point."""

    def tensor(shape: Sequence[int], encoding: Encoding) -> dict[str, Any]:
        point = int(encoding.zero) if zero == "zero_point" else -int(encoding.zero)
        scale = {"scale": float(encoding.scale), zero: point}
        return {"shape": list(shape), "dtype": encoding.dtype.__name__, "quantization_parameters": scale}

    heads, size, past = decoder.heads, decoder.head_dim, decoder.context - width
    shapes = {
        "attention_mask": (1, 1, width, decoder.context),
        "position_ids_cos": (1, 1, width, size // 2),
        "position_ids_sin": (1, 1, width, size // 2),
        "past_key_0_in": (heads, 1, size, past),
        "past_value_0_in": (heads, 1, past, size),
    }
    return {
        "inputs": {
            "input_ids": {"shape": [1, width], "dtype": "int32"},
            **{name: tensor(shape, INPUTS[name]) for name, shape in shapes.items()},
        },
        "outputs": {
            "logits": tensor((1, width, decoder.vocab_size), LOGITS),
            "past_key_0_out": tensor((heads, 1, size, width), CACHE),
            "past_value_0_out": tensor((heads, 1, width, size), CACHE),
        },
    }


def _yaml(tree: dict[str, Any], indent: str = "") -> Iterator[str]:
    """The lines of a YAML document in the exporters' style: lists in one line."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {value}"


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return path
