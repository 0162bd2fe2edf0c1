"""The builder's NPU target: the files it writes, the errors it measures, the models it refuses."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from gateway.builder.build import build_bundle
from gateway.builder.fetch import ensure_bundle
from gateway.builder.graphs.static import split, write_part
from gateway.builder.graphs.static_products import COMPILE_OPTIONS, Range
from gateway.builder.npu import parts as qnn_parts
from gateway.builder.npu.build import REPORT, NpuReport, NpuTarget
from gateway.builder.npu.calibration import calibrate
from gateway.builder.npu.check import CheckRequest, PartCheck
from gateway.builder.npu.part_runner import cpu_session, run_part
from gateway.builder.sources.detect import open_source
from gateway.bundles.bundle import load_bundle
from gateway.bundles.graph_files import check_graph_files
from gateway.bundles.stamp import read_stamp
from gateway.cli import main
from gateway.config.tables import LocalModel
from gateway.errors import BundleError
from gateway.qnn.compile import compile_graphs
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import open_session
from tests.support.decoding import IDS, greedy
from tests.support.npu.fixtures import OpenDecoder
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("compiled_once")
_NEEDS_2_7_0 = pytest.mark.skipif(
    metadata.version("onnxruntime-qnn") != "2.7.0", reason="needs a fault of the compiler in 2.7.0"
)


def build(source: Path, out: Path, npu: NpuDevice, **layout: object) -> Path:
    target = NpuTarget(**{"device": npu, "contexts": (64,), "width": 8} | layout)  # type: ignore[arg-type]
    return build_bundle(source, out, progress=lambda *_: None, target=target)


def report(bundle: Path) -> NpuReport:
    return msgspec.json.decode((bundle / REPORT).read_bytes(), type=NpuReport)


def test_report_contains_target_and_errors(npu_bundle: Path) -> None:
    found = report(npu_bundle)
    assert (found.soc, found.precision, found.contexts) == (60, "fp16", (64, 128))
    assert (found.width, found.batch, found.verify) == (8, 4, 4)
    assert len(found.parts) == 2 and found.top1 == 1.0 and found.tokens > 16
    assert all(0 < part.npu_error < 0.02 and 0 < part.error < 0.02 for part in found.parts)
    assert all(part.batch_error is not None and 0 < part.batch_error < 0.02 for part in found.parts)
    assert all(part.verify_error is not None and 0 < part.verify_error < 0.02 for part in found.parts)
    stamp = read_stamp(npu_bundle)
    assert stamp is not None and stamp.target == "qnn"


def test_bundle_contains_no_uncompiled_graph(npu_bundle: Path) -> None:
    check_graph_files(load_bundle(npu_bundle))
    folders = sorted(path.name for path in npu_bundle.iterdir() if path.is_dir())
    assert folders == ["batch-128", "batch-64", "context-64", "verify-128", "verify-64"]
    assert not list(npu_bundle.rglob("layers*"))


@pytest.mark.parametrize(("stored_as", "batch"), [("Q4_0", 1), ("Q4_1", 4), ("Q8_0", 1)])
def test_int4_build_keeps_gguf_blocks(
    npu: NpuDevice, tmp_path: Path, open_decoder: OpenDecoder, stored_as: str, batch: int
) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", stored_as=stored_as)
    bundle = build(source, tmp_path / "out", npu, precision="int4", batch=batch)
    (part,) = report(bundle).parts
    assert part.error < 0.02 and report(bundle).top1 > 0.9  # the float32 reference uses the file's own numbers
    assert len(greedy(open_decoder(bundle, "qnn"), IDS, 8)) == 8


def test_int4_build_of_float_weights_reports_quantisation_error(
    npu: NpuDevice, tiny_source: Path, tmp_path: Path
) -> None:
    (part,) = report(build(tiny_source, tmp_path / "out", npu, precision="int4", batch=1)).parts
    assert part.npu_error < 0.02 < part.error


def test_w8a16_build_calibrates_each_part(
    npu: NpuDevice, tiny_source: Path, tmp_path: Path, open_decoder: OpenDecoder
) -> None:
    bundle = build(tiny_source, tmp_path / "out", npu, precision="w8a16", parts=2, batch=1)
    found = report(bundle)
    assert all(part.npu_error < 0.02 and part.error < 0.1 for part in found.parts) and found.top1 > 0.85
    assert len(greedy(open_decoder(bundle, "qnn"), IDS, 8)) == 8


def test_w4a16_graph_quantises_activations_on_npu(npu: NpuDevice, tmp_path: Path) -> None:
    """By default the NPU computes these products in floats, and calibration ranges that are too wide have no effect."""
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", stored_as="Q4_1"))
    part, inputs = split(1, 1)[0], np.random.default_rng(0).standard_normal((32, 64), np.float32)
    folders = [tmp_path / name for name in ("calibration", "quantised", "compiled")]
    for folder in folders:
        folder.mkdir()
    layout: Any = {"widths": {"context": 32}, "contexts": [64], "precision": "w4a16"}
    plain = write_part(source, folders[0], part, **layout)["context", 64]
    np.save(tmp_path / "hidden.npy", inputs)
    coarse = {
        name: Range(-2000.0, 2000.0, 100.0) if name.endswith("norm") else range_
        for name, range_ in calibrate(plain, tmp_path / "hidden.npy").items()
    }
    graph = write_part(source, folders[1], part, ranges=coarse, **layout)["context", 64]
    (compiled,) = compile_graphs([graph], folders[2], npu, options=COMPILE_OPTIONS["w4a16"])
    in_float = run_part([cpu_session(str(plain))], inputs)
    npu_error = np.linalg.norm(run_part([open_session(compiled, npu)], inputs) - in_float)
    cpu_error = np.linalg.norm(run_part([cpu_session(str(graph), exact=True)], inputs) - in_float)
    assert npu_error > 0.5 * cpu_error > 0.01 * np.linalg.norm(in_float)


@_NEEDS_2_7_0
def test_build_with_wrong_npu_results_is_refused(npu: NpuDevice, tiny_source: Path, tmp_path: Path) -> None:
    """The compiler's fault: windows of exactly 16 tokens, 8-bit weights after a float16 norm give noise silently."""
    with pytest.raises(BundleError, match=r"computes it wrongly: the relative error is 1\.\d"):
        build(tiny_source, tmp_path / "out", npu, precision="w8a16", width=16, batch=1)


@_NEEDS_2_7_0
def test_build_with_wrong_batched_steps_omits_them(npu: NpuDevice, tiny_source: Path, tmp_path: Path) -> None:
    """The same fault with 16 rows, here of 16 sequences."""
    stages: list[str] = []
    target = NpuTarget(device=npu, contexts=(64,), width=8, precision="w8a16", batch=16)
    bundle = build_bundle(tiny_source, tmp_path / "out", progress=lambda what, _: stages.append(what), target=target)
    assert report(bundle).batch == 1 and report(bundle).top1 > 0.85
    assert "building again, without batched steps" in stages
    assert not list(bundle.glob("*batch*"))


@pytest.mark.parametrize(
    ("fails", "graph"), [("check_part", "batch"), ("compile_graphs", "batch"), ("check_part", "verify")]
)
def test_build_with_failing_optional_graph_omits_it(
    npu: NpuDevice, tiny_source: Path, tmp_path: Path, fails: str, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device crashes in the graph, or the shared binary with it is too large."""
    original, optional = getattr(qnn_parts, fails), {"batch": 1, "verify": 1} | {graph: 4}

    def crashing(*args: Any, **options: Any) -> Any:
        is_named = re.search(rf"{graph}(_64)?(_ctx)?.onnx", repr(args))
        if is_named and (fails == "check_part" or options["share_weights"]):
            raise BundleError("The process crashed.")
        return original(*args, **options)

    monkeypatch.setattr(qnn_parts, fails, crashing)
    bundle = build(tiny_source, tmp_path / "out", npu, share_weights=fails == "compile_graphs", **optional)
    assert (report(bundle).batch, report(bundle).verify) == (1, 1)
    assert not list(bundle.glob(f"*{graph}*"))


def test_wrong_graph_for_drafts_is_omitted(
    npu: NpuDevice, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = qnn_parts.check_part

    def inexact(request: CheckRequest) -> PartCheck:
        check = original(request)
        return replace(check, verify_error=0.06) if request.compiled.verify else check

    monkeypatch.setattr(qnn_parts, "check_part", inexact)
    stages: list[str] = []
    target = NpuTarget(device=npu, contexts=(64,), width=8, batch=1, verify=4)
    bundle = build_bundle(tiny_source, tmp_path / "out", progress=lambda what, _: stages.append(what), target=target)
    assert "building again, without the graph for drafts" in stages
    assert report(bundle).verify == 1 and not list(bundle.glob("*verify*"))


def test_build_with_float16_overflow_is_refused(npu: NpuDevice, tmp_path: Path) -> None:
    """The NPU accepts the graph and computes infinities."""
    source = write_tiny_folder(tmp_path / "source")
    model = open_source(source)
    weights = {name: model.tensor(name) for name in _names(model.config.layers)}
    for name in ("up_proj", "down_proj"):
        weights[f"model.layers.1.mlp.{name}.weight"] = weights[f"model.layers.1.mlp.{name}.weight"] * 3e3
    save_file(weights, source / "model.safetensors")
    with pytest.raises(BundleError, match=r"accepts part 1 of 1 but computes it wrongly.*largest number"):
        build(source, tmp_path / "out", npu, batch=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, and is 0"),
        ({"width": 64}, "from 2 to 63 for these contexts, and is 64"),
        ({"width": 1}, "from 2 to 63 for these contexts, and is 1"),
        ({"parts": 3}, "from 1 to 2, and is 3"),
    ],
)
def test_impossible_shapes_are_refused(
    npu: NpuDevice, tiny_source: Path, tmp_path: Path, layout: dict[str, int], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        build(tiny_source, tmp_path / "out", npu, **layout)


def test_contexts_are_limited_to_model_context(npu: NpuDevice, tmp_path: Path) -> None:
    source = write_tiny_folder(tmp_path / "source", context=96)
    assert report(build(source, tmp_path / "out", npu, contexts=(64, 128, 256), batch=1)).contexts == (64, 96)


def test_build_for_another_chip_shares_one_binary(npu: NpuDevice, tiny_source: Path, tmp_path: Path) -> None:
    arguments = ["build", str(tiny_source), str(tmp_path / "out"), "--target", "qnn", "--soc", "88"]
    assert main([*arguments, "--context", "64,128", "--width", "8", "--precision", "int4", "--head", "npu"]) == 0
    assert report(tmp_path / "out").soc == 88 and report(tmp_path / "out").head is not None
    assert len(list((tmp_path / "out").glob("*.bin"))) == 2  # of the layers and of the head


def test_ensure_bundle_builds_npu_bundle_once(npu: NpuDevice, tmp_path: Path) -> None:
    source = write_tiny_folder(tmp_path / "source", context=64)
    model = LocalModel(path="tiny", source=str(source), provider="qnn")
    path = ensure_bundle(model, tmp_path, lambda *_: None)
    assert path == tmp_path / "tiny-npu"
    written = (path / "genai_config.json").stat().st_mtime_ns
    assert ensure_bundle(model, tmp_path, lambda *_: None) == path
    assert (path / "genai_config.json").stat().st_mtime_ns == written


def _names(layers: int) -> list[str]:
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    names = [f"model.layers.{index}.{part}.weight" for index in range(layers) for part in parts]
    return ["model.embed_tokens.weight", "model.norm.weight", *names]
