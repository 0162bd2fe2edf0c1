"""What `npu-gateway list` shows on a terminal and in a pipe."""

from __future__ import annotations

import pytest

from gateway.commands.models.stored import lines, tabbed
from gateway.pull.stored import Stored

MODELS = [
    Stored(name="a", state="ready", bytes=3_100_000_000, layout="genie", source="qwen3-4b", is_configured=True),
    Stored(name="a-very-long-name-of-a-model-that-goes-on-8b", state="elsewhere", bytes=1, layout="pipeline"),
    Stored(name="b", state="interrupted", bytes=5_000_000, source="https://host/a folder with a name/b.zip"),
]


@pytest.mark.parametrize("width", [50, 80, 200])
def test_lines_fit_into_the_terminal(width: int) -> None:
    found = list(lines(MODELS, width))
    assert max(map(len, found)) <= width
    assert found[:2] == ["a  ready", "  3.1 GB, genie, from qwen3-4b"]
    text = " ".join(" ".join(found).split())
    assert "not in config.toml" in text and "repeat the pull, or `npu-gateway rm b`" in text


def test_text_of_a_source_cannot_break_a_line() -> None:
    model = Stored(name="a", state="ready", bytes=1, layout="genie", source="x\ty\nz\x1b[31m")
    assert len(tabbed(model).split("\t")) == 6
    assert "\x1b" not in tabbed(model) + "".join(lines([model], 50))


def test_no_model_names_the_next_step() -> None:
    [line] = lines([], 80)
    assert "npu-gateway catalog" in line
