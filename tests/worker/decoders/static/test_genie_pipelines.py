"""Genie bundles in our own engine: several parts, several graphs in each binary, two context lengths."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from gateway.bundles.genie.bundle import load_genie_bundle
from gateway.errors import BundleError, ConfigError
from gateway.qnn.chains import read_chains
from gateway.qnn.device import NpuDevice
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.genie_pipelines import genie_pipelines, open_genie_decoder
from gateway.worker.decoders.static.stage import BoundStage
from tests.support.child_call import call_in_child
from tests.support.decoding import IDS, greedy, prefill
from tests.support.npu.genie_layouts import LAYOUTS, Layout, write_layout
from tests.support.npu.published_parts import write_published_binaries
from tests.support.npu.tiny_htp_decoder import TinyDecoder

TINY = TinyDecoder()
#: Tokens of nine prompts: below and above one window, at the end of the first context, beyond it, near the last row.
LENGTHS = (1, 2, 8, 9, 40, 56, 63, 64, 116)


@pytest.fixture(scope="module")
def decoder(published_bundle: Path) -> Iterator[StaticDecoder]:
    with closing(open_genie_decoder(load_genie_bundle(published_bundle), provider="qnn")) as decoder:
        yield decoder


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(5, 128, length).tolist()  # type: ignore[no-any-return]


def test_spec_is_that_of_the_longest_context(decoder: StaticDecoder) -> None:
    spec = decoder.spec
    assert (spec.vocab_size, spec.context_length, spec.prompt_width) == (128, 127, 8)
    assert (spec.device, spec.placement["QNN"]) == ("emulated", 12)


@pytest.mark.parametrize("length", LENGTHS)
def test_greedy_tokens_are_those_of_the_float_model(decoder: StaticDecoder, length: int) -> None:
    ids = prompt(length)
    assert TINY.is_greedy(ids, greedy(decoder, ids, 11))


def test_log_probabilities_are_those_of_the_float_model(decoder: StaticDecoder) -> None:
    ids = prompt(60)
    cache = decoder.new_cache()
    rows = [prefill(decoder, cache, ids), *(decoder.step([cache], [token])[0].copy() for token in IDS[:8])]
    expected = TINY.logits([*ids, *IDS[:8]])[len(ids) - 1 :]
    for row, right in zip(rows, expected, strict=True):
        likely = np.argsort(right)[-4:]
        difference = (row - np.logaddexp.reduce(row)) - (right - np.logaddexp.reduce(right))
        assert np.abs(difference[likely]).max() < 0.3


def float16_answer(folder: Path, ids: list[int], count: int) -> list[int]:
    write_published_binaries(folder / "binaries", contexts=(64,), is_float=True)
    binaries = sorted((folder / "binaries").glob("*.bin"))
    bundle = load_genie_bundle(write_layout(folder / "bundle", "geniex", binaries))
    with closing(open_genie_decoder(bundle, provider="qnn")) as decoder:
        assert decoder.spec.context_length == 63
        return greedy(decoder, ids, count)


def test_float16_bundle_gives_tokens_of_the_float_model(npu: NpuDevice, tmp_path: Path) -> None:
    """In a separate process, because the names of graphs are global in a process."""
    assert TINY.is_greedy(prompt(20), call_in_child(float16_answer, tmp_path, prompt(20), 30))


def drafts_with_narrow_graphs(folder: Path, ids: list[int]) -> tuple[int, float, list[int]]:
    write_published_binaries(folder / "binaries", contexts=(64,), widths=(8, 4, 1))
    bundle = load_genie_bundle(write_layout(folder / "bundle", "geniex", sorted((folder / "binaries").glob("*.bin"))))
    with closing(open_genie_decoder(bundle, provider="qnn")) as decoder:
        verified, stepped = decoder.new_cache(), decoder.new_cache()
        for cache in (verified, stepped):
            prefill(decoder, cache, ids)
        logits = decoder.verify(verified, IDS[:4])
        steps = [decoder.step([stepped], [token])[0].copy() for token in IDS[:4]]
        return decoder.narrow_width, float(np.abs(logits - steps).max()), greedy(decoder, ids, 30)


@pytest.mark.slow
def test_narrow_graphs_verify_drafts(npu: NpuDevice, tmp_path: Path) -> None:
    ids = prompt(20)
    width, difference, answer = call_in_child(drafts_with_narrow_graphs, tmp_path, ids)
    assert (width, TINY.is_greedy(ids, answer)) == (4, True) and difference < 0.1


def test_window_gives_logits_of_single_steps(decoder: StaticDecoder) -> None:
    windowed, stepped = decoder.new_cache(), decoder.new_cache()
    logits = decoder.verify(windowed, IDS[:6])
    steps = [decoder.step([stepped], [token])[0].copy() for token in IDS[:6]]
    np.testing.assert_allclose(logits, steps, atol=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_form_has_both_context_lengths(
    layout: Layout, npu: NpuDevice, published_binaries: list[Path], tmp_path: Path
) -> None:
    bundle = load_genie_bundle(write_layout(tmp_path / "bundle", layout, published_binaries))
    with genie_pipelines(bundle, npu) as (pipelines, _, binaries):
        assert all(file.is_file() for file in binaries)
    assert not any(file.exists() for file in binaries)
    assert [(item.config.context_length, item.window.window_size) for item in pipelines] == [(64, 8), (128, 8)]
    assert {item.window.pad_value for item in pipelines} == {128}
    assert len(binaries) == 12 and set(binaries.values()) == set(bundle.binaries)


def answers_of_layouts(folder: Path, binaries: list[Path], ids: list[int], count: int) -> list[list[int]]:
    answers = []
    for layout in LAYOUTS:
        bundle = load_genie_bundle(write_layout(folder / layout, layout, binaries))
        with closing(open_genie_decoder(bundle, provider="qnn")) as decoder:
            answers.append(greedy(decoder, ids, count))
    return answers


def test_every_published_form_gives_tokens_of_the_float_model(published_binaries: list[Path], tmp_path: Path) -> None:
    """The answer moves from the context of 64 tokens to that of 128."""
    ids = prompt(60)
    answers = call_in_child(answers_of_layouts, tmp_path, published_binaries, ids, 6)
    assert len(answers) == len(LAYOUTS) and all(TINY.is_greedy(ids, answer) for answer in answers)


def test_context_lengths_share_their_buffers(decoder: StaticDecoder) -> None:
    """Logits of a window of 128 tokens take 39 MB for a vocabulary of 152,000. Bundles have up to five contexts."""
    outputs = [
        [stage._outputs for stage in window._stages if isinstance(stage, BoundStage)] for window in decoder._prompts
    ]
    short, long = (stages[-1]["logits"] for stages in outputs)
    assert short is long


def test_bundle_folder_is_unchanged(decoder: StaticDecoder, published_bundle: Path) -> None:
    suffixes = {path.suffix for path in published_bundle.rglob("*")}
    assert suffixes == {".bin", ".json"}


def test_binaries_with_shared_weights_have_the_same_graphs(published_binaries: list[Path], tmp_path: Path) -> None:
    """The published binaries have shared weights. They are read and checked here, and run only on a real NPU."""
    write_published_binaries(tmp_path / "shared", contexts=(64,), share_weights=True)
    shared = sorted((tmp_path / "shared").glob("*.bin"))
    sizes = [sum(path.stat().st_size for path in binaries) for binaries in (shared, published_binaries)]
    assert sizes[0] < 0.45 * sizes[1]
    (found,), (expected, _) = read_chains(shared), read_chains(published_binaries)
    assert [part.graph for part in found.parts] == [part.graph for part in expected.parts]


def test_missing_part_is_refused(published_binaries: list[Path], tmp_path: Path) -> None:
    config = write_layout(tmp_path, "geniex", published_binaries[1:])
    with pytest.raises(BundleError, match="part 1 has no graph of width 8 for a context of 64 tokens"):
        open_genie_decoder(load_genie_bundle(config), provider="qnn")


def test_part_of_another_model_is_refused(published_binaries: list[Path], context_folder: Path, tmp_path: Path) -> None:
    config = write_layout(tmp_path, "geniex", published_binaries)
    shutil.copyfile(context_folder / "token_ctx_qnn.bin", config.parent / "tiny_part_2_of_3.bin")
    with pytest.raises(BundleError, match="tiny_decoder-geniex: "):
        open_genie_decoder(load_genie_bundle(config), provider="qnn")


def test_damaged_binary_is_refused(published_binaries: list[Path], tmp_path: Path) -> None:
    config = write_layout(tmp_path, "geniex", published_binaries)
    binary = config.parent / "tiny_part_2_of_3.bin"
    binary.write_bytes(binary.read_bytes()[:100_000])
    with pytest.raises(BundleError, match=r"tiny_part_2_of_3\.bin is damaged"):
        open_genie_decoder(load_genie_bundle(config), provider="qnn")


def test_other_vocabulary_is_refused(published_binaries: list[Path], tmp_path: Path) -> None:
    config = write_layout(
        tmp_path, "geniex", published_binaries, lambda dialog: dialog["context"].update({"n-vocab": 99})
    )
    with pytest.raises(BundleError, match="its graphs have 128 tokens and its configuration 99"):
        open_genie_decoder(load_genie_bundle(config), provider="qnn")


def test_other_rope_size_is_refused(published_binaries: list[Path], tmp_path: Path) -> None:
    def change(dialog: dict[str, dict[str, dict[str, dict[str, int]]]]) -> None:
        dialog["engine"]["backend"]["QnnHtp"]["pos-id-dim"] = 32

    config = write_layout(tmp_path, "geniex", published_binaries, change)
    with pytest.raises(BundleError, match="its graphs take 64 cosines and its configuration says 32"):
        open_genie_decoder(load_genie_bundle(config), provider="qnn")


def test_speculative_bundle_needs_genie(published_binaries: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()

    def change(dialog: dict[str, object]) -> None:
        dialog.update({"type": "ssd-q1", "ssd-q1": {"forecast-prefix-name": "."}})

    config = write_layout(tmp_path / "bundle", "geniex", published_binaries, change)
    (config.parent / "kv-cache.primary.qnn-htp").touch()
    with pytest.raises(BundleError, match=r"'ssd-q1'\. Only Genie runs it: engine = 'genie'"):
        open_genie_decoder(load_genie_bundle(config), provider="qnn")


def test_cpu_is_refused(published_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="compiled for the NPU, and provider = 'cpu' excludes it"):
        open_genie_decoder(load_genie_bundle(published_bundle), provider="cpu")


def test_other_chip_is_refused(published_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"geniex is compiled for .*\(Hexagon v73\) and this NPU is v81"):
        open_genie_decoder(load_genie_bundle(published_bundle), provider="qnn", options={"soc_model": "88"})
