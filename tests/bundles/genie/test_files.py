"""`find`: where a file is looked for that a configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.bundles.genie.files import find


@pytest.mark.parametrize("name", [r"\\host\share\tokenizer.json", "//host/share/tokenizer.json", r"\\?\UNC\h\s\t.json"])
def test_no_other_machine_is_asked_for_a_file(tmp_path: Path, name: str) -> None:
    """Windows sends a hash of the user's password to that machine, before it answers."""
    tried: list[Path] = []
    assert find(tmp_path, name, lambda path: bool(tried.append(path))) is None
    assert tried and all(path.parent == tmp_path or path == tmp_path for path in tried)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "t.json").write_text("{}", encoding="utf-8")
    found = find(tmp_path, name)
    assert found is not None and found.parent == tmp_path
