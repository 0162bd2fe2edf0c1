"""Bundles of fixed shape: both published layouts, compiled for the emulated NPU and not, and our own layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.builder.build import build_bundle
from gateway.builder.graphs import quantise
from gateway.builder.npu.build import NpuTarget
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, ModelSource, layer
from gateway.bundles.origin import Origin, write_origin
from gateway.qnn.detect import try_detect_npu
from gateway.qnn.device import NpuDevice
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.open import open_static_decoder
from tests.support.made_once import made_once
from tests.support.npu import ai_hub_bundle, olive_bundle, windows_ml_bundle
from tests.support.npu.ai_hub_export import LLMWARE, write_export
from tests.support.npu.genie_bundle import write_genie_bundle
from tests.support.npu.genie_layouts import write_layout
from tests.support.npu.htp_compile import compile_in_child, context_binaries
from tests.support.npu.published_parts import write_published_binaries
from tests.support.npu.tiny_htp_decoder import TinyDecoder
from tests.support.oracle import Oracle, Weights
from tests.support.tiny import write_tiny_folder

#: Opens a bundle for one test. The arguments are those of `open_static_decoder`.
OpenDecoder = Callable[..., StaticDecoder]


@pytest.fixture(scope="session")
def npu(expensive: None) -> NpuDevice:
    device = try_detect_npu(emulated=True)
    if device is None:
        pytest.skip("this machine has no NPU and no NPU emulator")
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


def pulled(bundle: Path) -> Path:
    """The bundle as one of ours, so that graphs are compiled into its folder and not into the cache of the user."""
    write_origin(bundle, Origin(source="test", url=""))
    return bundle


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("tiny-source"))


@pytest.fixture(scope="session")
def tiny_model(tiny_source: Path) -> ModelSource:
    return open_source(tiny_source)


@pytest.fixture(scope="session")
def oracle(tiny_model: ModelSource) -> Oracle:
    """The tiny model in float32. Only its embedding is in 8-bit blocks, as in the bundles."""
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
            theta=config.ropes[0].theta,
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
def npu_bundle(npu: NpuDevice, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of our builder: two parts, two context lengths, batched steps of four, drafts of four."""
    target = NpuTarget(device=npu, contexts=(64, 128), width=8, parts=2, verify=4)

    def build(folder: Path) -> None:
        build_bundle(tiny_source, folder, progress=lambda *_: None, target=target)

    return made_once(tmp_path_factory, "npu_bundle", build)


@pytest.fixture(scope="session")
def windows_ml_uncompiled(tiny_model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows_ml") / "plain"
    return pulled(windows_ml_bundle.write_bundle(folder, tiny_model, compiled="none"))


@pytest.fixture(scope="session")
def windows_ml_compiled(npu: NpuDevice, tiny_model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return windows_ml_bundle.write_bundle(tmp_path_factory.mktemp("windows_ml") / "whole", tiny_model, compiled="whole")


@pytest.fixture(scope="session")
def windows_ml_cpu_attention(npu: NpuDevice, tiny_model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return windows_ml_bundle.write_bundle(
        tmp_path_factory.mktemp("windows_ml") / "cpu_attention", tiny_model, compiled="cpu_attention"
    )


WriteOlive = Callable[..., Path]


@pytest.fixture(scope="session")
def write_olive(tiny_source: Path, tiny_model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> WriteOlive:
    """Writes a bundle as Olive does. Arguments: see `olive_bundle.write_bundle`."""

    def write(**options: Any) -> Path:
        return olive_bundle.write_bundle(tmp_path_factory.mktemp("olive") / "model", tiny_model, tiny_source, **options)

    return write


@pytest.fixture(scope="session")
def olive_uncompiled(write_olive: WriteOlive) -> Path:
    return pulled(write_olive(compiled="none"))


@pytest.fixture(scope="session")
def olive_compiled(npu: NpuDevice, write_olive: WriteOlive) -> Path:
    return write_olive(compiled="islands")


@pytest.fixture(scope="session")
def olive_in_parts(npu: NpuDevice, write_olive: WriteOlive) -> Path:
    return write_olive(compiled="islands", parts=2)


@pytest.fixture(scope="session")
def foundry_compiled(npu: NpuDevice, write_olive: WriteOlive) -> Path:
    """The older generation of names."""
    return write_olive(compiled="islands", names=olive_bundle.FOUNDRY)


@pytest.fixture(scope="session")
def ai_hub_uncompiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pulled(ai_hub_bundle.write_bundle(tmp_path_factory.mktemp("ai_hub") / "plain", TinyDecoder()))


@pytest.fixture(scope="session")
def context_folder(npu: NpuDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny decoder's graphs and context binaries, compiled for the emulated NPU."""
    return made_once(tmp_path_factory, "npu_contexts", compile_in_child)


@pytest.fixture(scope="session")
def ai_hub_compiled(context_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ai_hub") / "compiled"
    return ai_hub_bundle.write_bundle(folder, TinyDecoder(), compiled=context_folder)


@pytest.fixture(scope="session")
def exported_binaries(npu: NpuDevice, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three context binaries with the graphs of both phases."""
    folder = made_once(tmp_path_factory, "exported_binaries", lambda out: write_published_binaries(out, [128]))
    return sorted(folder.glob("*.bin"))


@pytest.fixture(scope="session")
def ai_hub_exported(exported_binaries: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the exporter writes it: without a scale for the logits, and without a tokenizer."""
    return write_export(tmp_path_factory.mktemp("ai_hub") / "exported", exported_binaries)


@pytest.fixture(scope="session")
def llmware(exported_binaries: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the names of llmware's files."""
    return write_export(tmp_path_factory.mktemp("llmware") / "exported", exported_binaries, names=LLMWARE)


@pytest.fixture(scope="session")
def genie_config(context_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config.json of a Genie bundle over the same binaries."""
    return write_genie_bundle(tmp_path_factory.mktemp("genie") / "tiny", context_binaries(context_folder))


@pytest.fixture(scope="session")
def published_binaries(npu: NpuDevice, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three context binaries with four graphs each, in the order of the parts."""
    folder = made_once(tmp_path_factory, "published_binaries", write_published_binaries)
    return sorted(folder.glob("*.bin"))


@pytest.fixture(scope="session")
def published_bundle(published_binaries: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as AI Hub's archives contain it, around these binaries."""
    return write_layout(tmp_path_factory.mktemp("published"), "geniex", published_binaries).parent
