"""What models need: estimates from the files, and measurements that a later start reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gateway.bundles.stamp import BUNDLE_FORMAT, STAMP_FILE, Stamp, npu_folder
from gateway.config.file import load_config
from gateway.config.tables import GenieModel, LocalModel, MemoryConfig, UpstreamModel
from gateway.lanes.memory.needs import Need, Needs, budget_bytes, estimate
from tests.support.paths import ROOT
from tests.support.routing import model


def test_estimate_grows_with_weights_and_caches(tiny: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    one = estimate(LocalModel(path=str(bundle), max_sequences=1))
    many = estimate(LocalModel(path=str(bundle), max_sequences=100))
    short = estimate(LocalModel(path=str(bundle), max_sequences=100, context_length=8))
    assert one.context_length == 512 and short.context_length == 8
    assert one.least_bytes == many.least_bytes and one.bytes < short.bytes < many.bytes
    with (bundle / "more.bin").open("wb") as more:
        more.truncate(1_000_000_000)
    larger = estimate(LocalModel(path=str(bundle), max_sequences=1))
    assert larger.bytes - one.bytes == pytest.approx(1.3e9, abs=10)
    assert larger.load_s is not None and one.load_s is not None and larger.load_s - one.load_s == pytest.approx(2.5)


def test_half_floats_need_the_memory_of_floats(tiny: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    needs = []
    for precision in ("int4", "float16"):
        stamp = Stamp(format=BUNDLE_FORMAT, target="cpu", source="x", precision=precision)
        (bundle / STAMP_FILE).write_bytes(msgspec.json.encode(stamp))
        needs.append(estimate(LocalModel(path=str(bundle))))
    packed, halves = needs
    assert halves.bytes - packed.bytes == pytest.approx(packed.least_bytes, abs=10)
    assert halves.least_bytes == packed.least_bytes > 0


def test_estimate_has_the_element_size_of_the_cache(tiny: Path) -> None:
    one, two = (estimate(LocalModel(path=str(tiny), max_sequences=n)) for n in (1, 2))
    assert one.window and two.bytes - one.bytes == one.window.bytes == 512 * one.window.token_bytes


def test_model_that_drafts_counts_with_the_model(tiny: Path, tmp_path: Path) -> None:
    alone = estimate(LocalModel(path=str(tiny)))
    both = estimate(LocalModel(path=str(tiny), draft=str(tiny)))
    assert both.bytes == 2 * alone.bytes - 240_000_000
    assert both.least_bytes == 2 * alone.least_bytes
    assert both.key != alone.key
    folder = tmp_path / "small"
    shutil.copytree(tiny, npu_folder(folder))
    assert estimate(LocalModel(path=str(tiny), draft=str(folder))).bytes == both.bytes, "it is built for the NPU only"


def test_models_without_files_need_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "genai_config.json").write_text("{", encoding="utf-8")
    for table in (
        UpstreamModel(url="http://127.0.0.1:1/v1"),
        LocalModel(path=str(tmp_path / "gone" / "away")),
        GenieModel(path=str(tmp_path / "gone" / "away")),
    ):
        assert estimate(table) == Need()
    assert estimate(LocalModel(path=str(tmp_path / "damaged"))).least_bytes == 0
    assert estimate(model(memory_mb=7, load_s=2.0)) == Need(bytes=7_000_000, least_bytes=7_000_000, load_s=2.0)


def test_bundle_that_the_first_request_builds_is_estimated_from_its_source(tmp_path: Path) -> None:
    def need(source: str) -> int:
        return estimate(LocalModel(path=str(tmp_path / "away"), source=source, load="demand")).bytes

    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model.gguf").write_bytes(bytes(2000))
    least = need("hf:org/repo")
    assert least == need(str(tmp_path / "none.gguf")) == 240_000_000
    assert need(str(tmp_path)) == least + 1300 and need(str(tmp_path / "model.gguf")) == least + 2600
    delivered = load_config(ROOT / "config.toml", {}).models["minilm"]
    assert isinstance(delivered, LocalModel)
    assert estimate(replace(delivered, path=str(tmp_path / "away"))).bytes == least + int(1.3 * 90_900_000)


def test_measurement_is_kept_for_the_same_bundle_and_keys(tiny: Path, tmp_path: Path) -> None:
    bundle, file = Path(shutil.copytree(tiny, tmp_path / "bundle")), tmp_path / "data" / "memory.json"
    table = LocalModel(path=str(bundle))
    first = Needs(file)
    found = replace(first.of(table), bytes=2_000, least_bytes=1_000, load_s=3.0)
    assert first.note(found)
    first.write()
    again = Needs(file)
    kept = again.of(table)
    assert (kept.bytes, kept.least_bytes, kept.load_s, kept.is_measured) == (2_000, 1_000, 3.0, True)
    assert not again.of(replace(table, max_sequences=9)).is_measured
    (bundle / "model.onnx").write_bytes(b"another model")
    assert not again.of(table).is_measured


@pytest.mark.parametrize("content", [b"", b"{", b'{"models": 3}', b'{"models": {"a": {"bytes": "x"}}}', b"\xff"])
def test_damaged_file_is_as_none(tiny: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "memory.json"
    file.write_bytes(content)
    assert not Needs(file).of(LocalModel(path=str(tiny))).is_measured


def test_default_budget_is_a_share_of_the_memory() -> None:
    assert budget_bytes(MemoryConfig(budget_mb=3)) == 3_000_000
    assert budget_bytes(MemoryConfig()) > 100_000_000
