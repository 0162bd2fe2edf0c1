"""Bundles of fixed shape, made once: both published layouts, compiled for the emulated NPU and not, and our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.builder.build import build_bundle
from gateway.builder.graphs import quantise
from gateway.builder.npu.build import NpuTarget
from gateway.builder.npu.target import look_for_npu
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, ModelSource, layer
from gateway.qnn.provider import NpuDevice
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.open import open_static_decoder
from tests.support import family_b, family_c
from tests.support.oracle import Oracle, Weights
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_context import TinyDecoder, build_apart

#: Opens a bundle for one test and closes it afterwards.
OpenDecoder = Callable[..., StaticDecoder]


@pytest.fixture(scope="session")
def npu() -> NpuDevice:
    device = look_for_npu(emulated=True)
    if device is None:
        pytest.skip("there is no NPU here, and no emulation of one")
    return device


@pytest.fixture
def open_decoder() -> Iterator[OpenDecoder]:
    opened: list[StaticDecoder] = []

    def open_one(folder: Path, provider: str, **options: object) -> StaticDecoder:
        opened.append(open_static_decoder(folder, provider=provider, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for decoder in opened:
        decoder.close()


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("tiny-source"))


@pytest.fixture(scope="session")
def tiny_model(tiny_source: Path) -> ModelSource:
    return open_source(tiny_source)


@pytest.fixture(scope="session")
def oracle(tiny_model: ModelSource) -> Oracle:
    """The tiny model in float32, its embedding in the 8-bit blocks that bundles keep it in."""
    blocks, config = quantise.eight_bit(tiny_model.tensor(EMBEDDING)), tiny_model.config
    embedding = (blocks.quants * blocks.scale[..., None]).reshape(config.vocab, config.hidden).astype(np.float32)
    layers = [
        {short: tiny_model.tensor(layer(index, part)) for short, part in _PARTS.items()}
        for index in range(config.layers)
    ]
    return Oracle(
        Weights(
            embedding=embedding,
            head=embedding,
            norm=tiny_model.tensor(FINAL_NORM),
            layers=layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            theta=config.rope_theta,
            epsilon=config.rms_eps,
            interleaved=False,
        )
    )


_PARTS = {
    "attn_norm": "input_layernorm.weight",
    "attn_q": "self_attn.q_proj.weight",
    "attn_k": "self_attn.k_proj.weight",
    "attn_v": "self_attn.v_proj.weight",
    "attn_output": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "ffn_gate": "mlp.gate_proj.weight",
    "ffn_up": "mlp.up_proj.weight",
    "ffn_down": "mlp.down_proj.weight",
}


@pytest.fixture(scope="session")
def built(npu: NpuDevice, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `build --target qnn` makes: two parts, two context lengths."""
    target = NpuTarget(device=npu, contexts=(64, 128), width=8, parts=2)
    return build_bundle(tiny_source, tmp_path_factory.mktemp("built") / "tiny", progress=lambda *_: None, target=target)


@pytest.fixture(scope="session")
def plain_b(tiny_model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_b.write_bundle(tmp_path_factory.mktemp("b") / "plain", tiny_model, compiled="none")


@pytest.fixture(scope="session")
def whole_b(npu: NpuDevice, tiny_model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_b.write_bundle(tmp_path_factory.mktemp("b") / "whole", tiny_model, compiled="whole")


@pytest.fixture(scope="session")
def islands_b(npu: NpuDevice, tiny_model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_b.write_bundle(tmp_path_factory.mktemp("b") / "islands", tiny_model, compiled="islands")


@pytest.fixture(scope="session")
def plain_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_c.write_bundle(tmp_path_factory.mktemp("c") / "plain", TinyDecoder())


@pytest.fixture(scope="session")
def compiled_c(npu: NpuDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c")
    build_apart(folder / "contexts")
    return family_c.write_bundle(folder / "compiled", TinyDecoder(), compiled=folder / "contexts")
