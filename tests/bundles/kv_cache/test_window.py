"""The context of a model on the CPU, with an injected amount of memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gateway.bundles.kv_cache.window import Window, read_window

GB = 1_000_000_000


@pytest.fixture(scope="module")
def shape(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose configuration has the cache of Mistral 7B, and the graph of the tiny model."""
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("shape") / "m"))
    file = folder / "genai_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["context_length"] = 32_768
    content["model"]["decoder"] |= {"num_hidden_layers": 32, "num_key_value_heads": 8, "head_size": 128}
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def window(folder: Path, memory: float, sequences: int = 4, configured: int = 0, draft: str = "") -> Window:
    found = read_window(folder, sequences=sequences, configured=configured, budget_bytes=0.6 * memory, draft=draft)
    assert found is not None
    return found


def with_context(shape: Path, folder: Path, context: int) -> Path:
    """A copy of the bundle with this context."""
    file = Path(shutil.copytree(shape, folder)) / "genai_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["context_length"] = context
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_context_is_limited_so_that_all_caches_get_half_of_the_budget(shape: Path) -> None:
    one = window(shape, 16 * GB)
    for memory in (8 * GB, 16 * GB, 24 * GB):
        found = window(shape, memory)
        assert found.context % 256 == 0 and 4096 <= found.context < found.own == 32_768
        assert 0.95 * 0.3 * memory < found.bytes <= 0.3 * memory or found.context == 4096
        assert found.note.startswith(f"context {found.context} of 32768: ") and "set context_length" in found.note
    assert window(shape, 16 * GB, sequences=1).context > one.context
    assert window(shape, 1 * GB).context == 4096
    assert window(shape, 1000 * GB).context == 32_768 and not window(shape, 1000 * GB).note


def test_configured_context_stays_and_is_refused_if_it_can_never_fit(shape: Path) -> None:
    budget = 0.6 * 16 * GB
    assert window(shape, 16 * GB, configured=5000).context == 5000
    assert not window(shape, 16 * GB, configured=5000).refusal(budget)
    found = window(shape, 16 * GB, configured=100_000)
    assert found.context == 32_768
    fits = int(budget // (4 * found.token_bytes))
    assert f"set context_length to at most {fits}, lower max_sequences, or raise [memory]" in found.refusal(budget)
    assert not window(shape, 16 * GB, configured=fits).refusal(budget)
    assert not window(shape, 1 * GB).refusal(budget)


@pytest.mark.parametrize("own", [512, 32_768], ids=["short", "long"])
def test_caches_of_a_model_that_drafts_count(shape: Path, tmp_path: Path, own: int) -> None:
    draft = with_context(shape, tmp_path / "draft", own)
    memory = 122_000.0 * window(shape, GB).token_bytes  # 16 GB for half precision
    budget = 0.6 * memory
    found, alone = window(shape, memory, draft=str(draft)), window(shape, memory)
    assert found.draft is not None and found.draft.context == min(own, found.context)
    assert found.context < alone.context and 0.9 * budget / 2 < found.bytes <= budget / 2
    refusal = window(shape, memory, configured=32_768, draft=str(draft)).refusal(budget)
    fits = int(refusal.split("at most ")[1].split(",")[0])
    assert window(shape, memory, configured=fits, draft=str(draft)).bytes <= budget
    assert window(shape, memory, configured=fits + 1, draft=str(draft)).refusal(budget)


def test_small_model_keeps_its_context(tiny: Path, shape: Path, tmp_path: Path) -> None:
    """SmolLM2-135M, in single or half precision, on a machine with 8 GB."""
    assert window(tiny, 1 * GB).context == window(tiny, 1 * GB).own == 512
    folder = Path(shutil.copytree(shape, tmp_path / "m"))
    text = (folder / "genai_config.json").read_text(encoding="utf-8")
    content = json.loads(text)
    content["model"]["context_length"] = 8192
    content["model"]["decoder"] |= {"num_hidden_layers": 30, "num_key_value_heads": 3, "head_size": 64}
    (folder / "genai_config.json").write_text(json.dumps(content), encoding="utf-8")
    assert window(folder, 8 * GB).context == 8192


def test_other_bundles_have_no_window(tmp_path: Path, shape: Path) -> None:
    def read(folder: Path) -> Window | None:
        return read_window(folder, sequences=1, configured=0, budget_bytes=GB)

    assert read(tmp_path) is None
    folder = Path(shutil.copytree(shape, tmp_path / "m"))
    graph = folder / "model.onnx"
    content = graph.read_bytes()
    for damaged in (b"", b"\xff" * 99, content[:100], content[: len(content) // 2]):
        graph.write_bytes(damaged)
        assert read(folder) is None
