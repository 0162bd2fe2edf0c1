"""Settings and sizes of an encoder's folder that are wrong: one sentence each, before a graph is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gateway.builder.encoders.build import write_encoder_files
from gateway.builder.encoders.families.find import is_encoder, open_encoder
from gateway.errors import BundleError
from tests.support.encoders.models import write_folder

_SHAPES = json.loads((Path(__file__).parents[2] / "support/encoders/vectors.json").read_text(encoding="utf-8"))


def change(file: Path, **settings: Any) -> Path:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | settings), encoding="utf-8")
    return file.parent


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 1}, "the weights have more than 1 layers"),
        ({"num_attention_heads": 0}, "a size is not positive"),
        ({"hidden_size": 96}, r"has other sizes than config\.json states for it, 96 x 96"),
        ({"intermediate_size": 40}, r"has other sizes than config\.json states for it, 40 x 48"),
        ({"max_position_embeddings": 512}, r"has other sizes than config\.json states for it, 512 x 48"),
        ({"vocab_size": 10**6}, r"has other sizes than config\.json states for it, 1000000 x 48"),
        ({"architectures": [1]}, r"config\.json has a value of the wrong kind"),
    ],
    ids=str,
)
def test_wrong_setting_is_one_sentence(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    folder = write_folder(tmp_path / "m", "bert-mean", _SHAPES["bert-mean"]["shapes"])
    with pytest.raises(BundleError, match=words):
        open_encoder(change(folder / "config.json", **settings))


@pytest.mark.parametrize("name", ["qwen3", "nomic", "modernbert"])
def test_scaled_positions_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """As those of a model for chat. Without the scaling the vectors would be wrong."""
    folder = write_folder(tmp_path / "m", name, _SHAPES[name]["shapes"])

    def scaled(**scaling: Any) -> Path:
        nested = {"full_attention": scaling} if name == "modernbert" else scaling
        return change(folder / "config.json", rope_parameters=nested)

    rope = open_encoder(scaled(rope_type="linear", factor=4.0)).config.ropes[0]
    assert rope.factors == (4.0,) * 8
    with pytest.raises(BundleError, match="with base -1"):
        open_encoder(scaled(rope_type="default", rope_theta=-1.0))
    with pytest.raises(BundleError, match="Rotary scaling of type 'yarn' is not supported"):
        open_encoder(scaled(rope_type="yarn", factor=4.0))


def test_matrix_of_another_size_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "bert-mean", _SHAPES["bert-mean"]["shapes"])
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    (name,) = (each for each in tensors if each.endswith("encoder.layer.1.output.dense.weight"))
    save_file(tensors | {name: np.zeros((48, 40), np.float32)}, file)
    with pytest.raises(BundleError, match=rf"^{name} has other sizes than config\.json states for it, 48 x 80"):
        open_encoder(folder)


@pytest.mark.parametrize("part", ["output.dense.weight", "output.LayerNorm.weight", "output.dense.bias"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, part: str) -> None:
    folder = write_folder(tmp_path / "m", "bert-mean", _SHAPES["bert-mean"]["shapes"])
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    (name,) = (each for each in tensors if each.endswith(f"encoder.layer.1.{part}"))
    tensors[name].flat[5] = np.nan
    save_file(tensors, file)
    with pytest.raises(BundleError, match=rf"{part} has values that are no finite numbers\. Download"):
        write_encoder_files(folder, tmp_path, "float", lambda stage, share: None)


def test_model_type_that_is_no_text_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": ["bert"]}', encoding="utf-8")
    assert not is_encoder(tmp_path)
