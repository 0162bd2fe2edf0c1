"""scripts/npu_shape.py with a tiny model."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from gateway.builder.sources.source import Rope
from gateway.qnn.device import NpuDevice
from scripts.npu_shape import LLAMA_3B, Shape


def test_part_with_random_weights_is_built_and_checked(npu: NpuDevice, tmp_path: Path) -> None:
    sizes = {"layers": 4, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128, "vocab": 64}
    tiny = replace(LLAMA_3B, **sizes, ropes=(Rope(dim=16, theta=10000.0),))
    shape = Shape(tiny, tmp_path / "tiny", npu, parts=2, context=64, width=16)
    shape.build()
    shape.run()
    facts = shape.facts
    assert facts["layers"] == 2 and facts["cache_bytes"] == 2 * 64 * 2 * 16 * 4
    assert len(facts["compiled_bytes"]) == 2 and len(facts["shared_bytes"]) == 1
    assert facts["nodes"] > 20 and facts["npu_error"] < 0.02 < facts["error"] < 0.5
