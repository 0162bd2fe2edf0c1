"""What a hostile file of metadata may cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.bundles.genie.tensors import read_tensors


def test_aliases_of_gigabytes_are_not_expanded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 8)]
    (tmp_path / "metadata.yaml").write_text("\n".join(lines), encoding="utf-8")
    assert read_tensors(tmp_path, with_yaml=True) == {}
    assert "with its aliases it has more than 16 MiB" in caplog.text


def test_alias_of_another_graph_is_read(tmp_path: Path) -> None:
    text = "components: {a: &a {outputs: {logits: {shape: [1, 2], dtype: uint16}}}, b: *a}"
    (tmp_path / "metadata.yaml").write_text(text, encoding="utf-8")
    found = read_tensors(tmp_path, with_yaml=True)
    assert found["a"] == found["b"] and found["b"].outputs["logits"].shape == (1, 2)
