"""Makes tests/builder/sources/data/packed.npz: small matrices, packed by the libraries that made the formats.

    python3 -m venv VENV; VENV/bin/pip install torch transformers
    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9     # unpack both
    VENV/bin/python scripts/packed_weights.py FOLDER_WITH_auto_gptq FOLDER_WITH_awq

For each case: the tensors of the format, and `values`, the weights (outputs, inputs) in float32 that the library
multiplies with. Scales are half floats, so every product is exact.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

_OUT = Path(__file__).parents[1] / "tests" / "builder" / "sources" / "data" / "packed.npz"
_INPUTS, _OUTPUTS = 128, 64  # as a down projection of the tests' tiny models
#: name -> bits, group size, zeros
_GPTQ = {
    "gptq-4-32": (4, 32, "any"),
    "gptq-4-64": (4, 64, "any"),
    "gptq-4-128": (4, 128, "middle"),
    "gptq-8-32": (8, 32, "middle"),
}
_AWQ = {"awq-4-32": 32, "awq-4-128": 128}


def main() -> None:
    for name, folder in zip(("auto_gptq", "awq"), sys.argv[1:], strict=True):
        package = types.ModuleType(name)  # without its __init__, which imports every kernel
        package.__path__ = [str(Path(folder) / name)]
        sys.modules[name] = package
    unused = types.ModuleType("accelerate")
    unused.__spec__ = importlib.machinery.ModuleSpec("accelerate", None)
    sys.modules["accelerate"] = unused
    cases = {name: _gptq(*case) for name, case in _GPTQ.items()} | {name: _awq(group) for name, group in _AWQ.items()}
    arrays = {f"{name}/{part}": values for name, parts in cases.items() for part, values in parts.items()}
    np.savez_compressed(_OUT, **arrays)
    print(f"{_OUT}: {_OUT.stat().st_size} bytes")


def _gptq(bits: int, group: int, zeros_are: str) -> dict[str, Any]:
    import torch

    library = importlib.import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda_old")
    weights, scales, zeros = _random(bits, group, zeros_are)
    packed = library.QuantLinear(bits, group, _INPUTS, _OUTPUTS, bias=False, weight_dtype=torch.float32)
    packed.pack(_linear(weights), scales.T.clone(), zeros.T.clone().float(), None)
    values = packed(torch.eye(_INPUTS)).T
    assert torch.equal(values, weights), "the library packs other weights"
    parts = {name: getattr(packed, name).numpy() for name in ("qweight", "qzeros", "g_idx")}
    return parts | {"scales": packed.scales.numpy().astype(np.float16), "values": values.contiguous().numpy()}


def _awq(group: int) -> dict[str, Any]:
    import torch

    packing = importlib.import_module("awq.utils.packing_utils")
    gemm = importlib.import_module("awq.modules.linear.gemm")
    weights, scales, zeros = _random(4, group, "any")
    packed = gemm.WQLinear_GEMM.from_linear(_linear(weights), 4, group, scales=scales, zeros=zeros)
    values = packing.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, group).T
    assert torch.equal(values, weights), "the library packs other weights"
    parts = {name: getattr(packed, name).numpy() for name in ("qweight", "qzeros", "scales")}
    return parts | {"values": values.contiguous().numpy()}


def _random(bits: int, group: int, zeros_are: str) -> tuple[Any, Any, Any]:
    """Weights (outputs, inputs); scales and zeros (groups, outputs)."""
    import torch

    random = torch.Generator().manual_seed(bits * 1000 + group)
    groups, top = _INPUTS // group, 2**bits
    quants = torch.randint(0, top, (_INPUTS, _OUTPUTS), generator=random)
    scales = (torch.rand((groups, _OUTPUTS), generator=random) * 0.02 + 0.001).half().float()
    zeros = torch.randint(1, top, (groups, _OUTPUTS), generator=random)
    if zeros_are == "middle":
        zeros = torch.full_like(zeros, top // 2)
    each = torch.arange(_INPUTS) // group
    return ((quants - zeros[each]) * scales[each]).T.contiguous(), scales, zeros


def _linear(weights: Any) -> Any:
    import torch

    linear = torch.nn.Linear(_INPUTS, _OUTPUTS, bias=False)
    linear.weight.data = weights
    return linear


if __name__ == "__main__":
    main()
