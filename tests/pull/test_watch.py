"""What a running gateway finds when config.toml changes."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from gateway.config.tables import LocalModel
from gateway.pull.config_edit import add_model, find_user_config
from gateway.pull.watch import ConfigWatch
from gateway.qnn.device import NpuDevice
from tests.support.model_package import NPU, X2_ELITE, write_package

TEXT = '[models.a]\nengine = "scripted"\n[models.b]\nengine = "scripted"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def write(file: Path, text: str) -> None:
    """With another time of modification than before, whatever the clock's resolution."""
    before = file.stat().st_mtime_ns
    file.write_text(text, encoding="utf-8")
    os.utime(file, ns=(before + 1_000_000_000, before + 1_000_000_000))


def test_new_table_is_found_once(file: Path, tiny: Path) -> None:
    watch = ConfigWatch(file, {"models.provider": "cpu"}, {"a"})
    assert watch() == {}
    shutil.copytree(tiny, file.parent / "models" / "tiny")
    add_model(find_user_config(file), "tiny", {"path": "tiny"})
    found = watch()
    assert list(found) == ["tiny"] and isinstance(found["tiny"], LocalModel)
    assert found["tiny"].path == str(file.parent / "models" / "tiny") and found["tiny"].provider == "cpu"
    assert watch() == {}


def test_new_package_gets_the_variant_of_this_chip(npu: NpuDevice, file: Path, tiny: Path) -> None:
    """As at a start of the gateway."""
    if npu.soc != 60:
        pytest.skip("the package is for Snapdragon X Elite")
    watch = ConfigWatch(file, {"models.provider": "qnn"}, {"a", "b"})
    write_package(file.parent / "models" / "p", tiny, {"other": X2_ELITE, "x-elite": NPU})
    write(file, TEXT + '[models.p]\npath = "p"\n')
    found = watch()["p"]
    assert isinstance(found, LocalModel) and found.path == str(file.parent / "models" / "p" / "x-elite")


def test_model_of_the_start_that_is_not_served_stays_out(file: Path) -> None:
    """As with `serve a`."""
    watch = ConfigWatch(file, {}, {"a"})
    write(file, TEXT + "# a comment\n")
    assert watch() == {}


def test_model_waits_for_its_bundle(file: Path, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = ConfigWatch(file, {"models.provider": "cpu"}, {"a", "b"})
    write(file, TEXT + '[models.late]\npath = "late"\n')
    assert watch() == {} and "late has no bundle yet" in caplog.text
    shutil.copytree(tiny, file.parent / "models" / "late")
    assert list(watch()) == ["late"]


def test_mistake_is_one_line_and_the_corrected_file_counts(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = ConfigWatch(file, {}, {"a", "b"})
    write(file, TEXT + "[models.c]\nengin = 1\n")
    assert watch() == {} and watch() == {}
    assert caplog.text.count("has a mistake, so nothing is added") == 1
    write(file, TEXT + '[models.c]\nengine = "scripted"\n')
    assert list(watch()) == ["c"]


def test_changed_and_removed_tables_need_a_restart(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = ConfigWatch(file, {}, {"a", "b"})
    write(file, '[server]\nport = 1\n[models.a]\nengine = "scripted"\nqueue = 3\n')
    with caplog.at_level(logging.WARNING):
        assert watch() == {}
    assert "a restart is necessary for server, models.a, models.b" in caplog.text
    caplog.clear()
    write(file, '[server]\nport = 1\n[models.a]\nengine = "scripted"\nqueue = 3\n# comment\n')
    assert watch() == {} and caplog.text == ""


def test_fallback_that_is_not_served_is_left_out(file: Path) -> None:
    watch = ConfigWatch(file, {}, {"a"})
    new = '[models.c]\nengine = "scripted"\nfallback = "a"\n[models.d]\nengine = "scripted"\nfallback = "b"\n'
    write(file, TEXT + new + '[models.e]\nengine = "scripted"\nfallback = "c"\n')
    assert {name: model.fallback for name, model in watch().items()} == {"c": "a", "d": None, "e": "c"}


def test_file_that_is_removed_adds_nothing(file: Path) -> None:
    watch = ConfigWatch(file, {}, {"a", "b"})
    file.unlink()
    assert watch() == {}
