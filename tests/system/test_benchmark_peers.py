"""The parts of the comparison with other servers: random models, and which samples count."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from tests.support.paths import ROOT


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module as the scripts do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_K, Kind.Q6_K])
def test_random_blocks_have_the_deviation_of_a_trained_matrix(modules: Any, kind: Kind) -> None:
    made = modules("random_blocks").random_blocks(np.random.default_rng(0), kind, 64, 1024, 2.0)
    values = dequantize(made, kind)
    assert values.shape == (64, 1024)
    assert values.std() == pytest.approx(2 / 32, rel=0.15)
    assert abs(values.mean()) < 0.1 * values.std()


def test_pair_with_a_busy_machine_is_left_out_and_counted(modules: Any) -> None:
    results = modules("peer.results")
    speeds = [(0, 30, 0.0, 20, 0.1), (1, 99, 0.0, 1, 0.26), (2, 99, 0.3, 1, 0.0), (3, 40, 0.25, 20, 0.0)]
    samples = [
        results.Sample("decode", pair, peer, elsewhere, {"decode, tokens/s": float(value)})
        for pair, ours, at_ours, theirs, at_theirs in speeds
        for peer, value, elsewhere in (("gateway", ours, at_ours), ("other", theirs, at_theirs))
    ]
    table, medians = results.comparison(samples, ["decode"], "gateway")
    assert "| 1.75 (1.50-2.00)x | 2 of 4 |" in table
    assert medians == {"decode, tokens/s": {"gateway": 35.0, "other": 20.0}}


def test_memory_counts_also_on_a_busy_machine(modules: Any) -> None:
    results = modules("peer.results")
    figures = {"start to ready, s": 1.0, "memory after load, MB": 100.0}
    samples = [results.Sample("start", 0, peer, 1.0, figures) for peer in ("gateway", "other")]
    assert list(results.comparison(samples, ["start"], "gateway")[1]) == ["memory after load, MB"]


def test_ratio_is_above_one_where_less_is_better_and_is_less(modules: Any) -> None:
    results = modules("peer.results")
    samples = [results.Sample("start", 0, peer, 0.0, {"start, s": s}) for peer, s in (("gateway", 1.0), ("other", 2.0))]
    assert "| 2.00x | 1 of 1 |" in results.comparison(samples, ["start"], "gateway")[0]


def test_samples_are_kept_in_a_file_and_a_row_can_be_measured_again(modules: Any, tmp_path: Any) -> None:
    results = modules("peer.results")
    sample = results.Sample("decode", 0, "gateway", 0.0, {"decode, tokens/s": 1.0})
    results.Results(tmp_path / "build" / "a.json").add([sample])
    again = results.Results(tmp_path / "build" / "a.json")
    assert (again.samples, again.next_pair("decode"), again.next_pair("start")) == ([sample], 1, 0)
    again.drop("decode")
    assert again.samples == []
