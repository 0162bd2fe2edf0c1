"""`npu-gateway check`: one line for each model, exit code 1 on damage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gateway import cli
from gateway.bundles.hashes import write_hashes
from tests.support.processes import SCRIPTED


@pytest.fixture
def bundle(tiny: Path, folder: Path) -> Path:
    (folder / "config.toml").write_text(f'{SCRIPTED}[models.m]\npath = "tiny"\n', encoding="utf-8")
    return Path(shutil.copytree(tiny, folder / "models" / "tiny"))


def check(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = cli.main(["check", "--config", str(folder / "config.toml"), *arguments])
    return code, capsys.readouterr().out.splitlines()


def test_intact_models_are_ok(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check(folder, capsys)
    assert code == 0
    assert lines[0].endswith("  no files  engine scripted")
    assert lines[1].startswith("m  ok  tiny, ")


def test_every_damaged_file_is_named(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in [file for file in bundle.iterdir() if not file.name.startswith(".")]:
        content = file.read_bytes()
        file.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
        code, (line,) = check(folder, capsys, "m")
        assert code == 1
        assert line.startswith(f"m  damaged  {file.name} ") and line.endswith(
            "Fetch tiny again. If you changed the file yourself, `npu-gateway check --record m` accepts it."
        )
        file.write_bytes(content)
    assert check(folder, capsys, "m")[0] == 0


def test_model_with_source_is_built_again(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.toml").write_text('[models.m]\npath = "tiny"\nsource = "x.gguf"\n', encoding="utf-8")
    (bundle / "tokenizer.json").write_bytes(b"")
    _, (line,) = check(folder, capsys)
    assert "Remove the folder tiny and start the gateway, which builds it again." in line


def test_bundle_without_hashes_is_recorded(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "hashes.json").unlink()
    expected = "m  unknown  no hashes; `npu-gateway check --record m` records the files as they are"
    assert check(folder, capsys, "m") == (0, [expected])
    code, (line,) = check(folder, capsys, "--record", "m")
    assert code == 0 and line.startswith("m  ok  ")
    (bundle / "tokenizer.json").write_bytes(b"{}")
    assert check(folder, capsys, "m")[0] == 1


def test_record_reports_what_it_cannot_record_and_goes_on(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        '[models.later]\npath = "later"\nsource = "x.gguf"\n[models.full]\npath = "full"\n[models.m]\npath = "tiny"\n'
    )
    (folder / "config.toml").write_text(text, encoding="utf-8")
    full = Path(shutil.copytree(bundle, bundle.with_name("full")))
    (full / "hashes.json").unlink()
    (full / "hashes.json").mkdir()
    (bundle / "tokenizer.json").write_bytes(b"{}")
    code, (later, failed, recorded) = check(folder, capsys, "--record")
    assert code == 1
    assert later.startswith("later  missing  ")
    assert failed.startswith("full  not recorded  ") and "the hashes cannot be written: " in failed
    assert recorded.startswith("m  ok  ")
    assert check(folder, capsys, "m")[0] == 0


def test_folder_with_hashes_of_compiled_graphs_only_is_unknown(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "hashes.json").unlink()
    (bundle / "compiled" / "1.0-graph").mkdir(parents=True)
    write_hashes(bundle / "compiled" / "1.0-graph")
    code, (line,) = check(folder, capsys, "m")
    assert code == 0 and line.startswith("m  unknown  no hashes; ")


def test_bundles_for_cpu_and_npu_are_both_checked(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    npu = Path(shutil.copytree(bundle, bundle.with_name("tiny-npu")))
    (npu / "tokenizer.json").write_bytes(b"{}")
    code, lines = check(folder, capsys, "m")
    assert code == 1
    assert lines[0].startswith("m  ok  tiny, ") and lines[1].startswith("m  damaged  tokenizer.json ")


def test_interrupted_replacement_is_completed_first(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.rename(bundle.with_name(".tiny.new"))
    assert cli.main(["models", "--config", str(folder / "config.toml")]) == 0
    bundle.rename(bundle.with_name(".tiny.new"))
    code, (_, line) = check(folder, capsys, "m")[0], check(folder, capsys)[1]
    assert code == 0 and line.startswith("m  ok  tiny, ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_file_without_permission_is_named(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "tokenizer.json").chmod(0)
    code, (line,) = check(folder, capsys, "m")
    assert code == 1 and line.startswith("m  damaged  tokenizer.json cannot be read: Permission denied")


def test_missing_folder_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.toml").write_text('[models.m]\npath = "gone"\n', encoding="utf-8")
    code, (line,) = check(folder, capsys)
    assert code == 0 and line.startswith("m  missing  ") and line.endswith("gone does not exist")


def test_unknown_model_is_a_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "nothing", "--config", str(folder / "config.toml")]) == 2
    errors = capsys.readouterr().err
    assert "There is no model 'nothing' in the configuration" in errors and "`npu-gateway pull` downloads" in errors
