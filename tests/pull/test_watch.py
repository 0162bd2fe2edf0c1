"""What a running gateway reads when config.toml changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.file import load_config
from gateway.config.select import only_model
from gateway.config.tables import GenieModel, LocalModel
from gateway.errors import BundleError, ConfigError
from gateway.pull.config_edit import add_model, find_user_config
from gateway.pull.watch import ConfigSource
from gateway.qnn.device import NpuDevice
from tests.bundles.preflight.test_draft import shift_all, with_tokenizer
from tests.support.model_package import NPU, X2_ELITE, write_package

TEXT = '[models.a]\nengine = "scripted"\n[models.b]\nengine = "scripted"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def source_of(file: Path, only: str = "", **overrides: Any) -> ConfigSource:
    named = {key.replace("_", ".", 1): value for key, value in overrides.items()}
    config = load_config(file, overrides=named)
    return ConfigSource(file, named, only_model(config, only) if only else config, only)


def write(file: Path, text: str) -> None:
    """With another time of modification than before, whatever the clock's resolution."""
    before = file.stat().st_mtime_ns
    file.write_text(text, encoding="utf-8")
    os.utime(file, ns=(before + 1_000_000_000, before + 1_000_000_000))


def test_state_changes_with_the_file_and_the_file_of_the_keys(file: Path) -> None:
    keys = file.with_name("keys.txt")
    keys.write_text("anna a-long-random-text\n", encoding="utf-8")
    text = '[server]\napi_keys_file = "keys.txt"\n' + TEXT
    write(file, text)
    source = source_of(file)
    states = [source.state()]
    write(file, text + "# comment\n")
    states.append(source.state())
    write(keys, "bert another-long-random-text\n")
    states.append(source.state())
    new = file.with_name("new.toml")  # an editor that replaces the file, with its time and length
    new.write_text(text + "# comment\n", encoding="utf-8")
    os.utime(new, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    new.replace(file)
    states.append(source.state())
    file.unlink()
    states.append(source.state())
    assert len(set(states)) == 5
    shutil.copy(keys, file)  # is no configuration
    assert source.state() == source.state() != states[-1]


def test_overrides_and_keys_of_the_file_count_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = file.with_name("keys.txt")
    keys.write_text("anna a-long-random-text\n", encoding="utf-8")
    source = source_of(file, server_port=8123)
    write(file, '[server]\nport = 1\napi_keys_file = "keys.txt"\n' + TEXT)
    server = source.read().server
    assert server.port == 8123 and server.api_keys == {"anna": "a-long-random-text"}
    keys.write_text("bert another-long-random-text\n", encoding="utf-8")
    assert list(source.read().server.api_keys) == ["bert"]
    assert "fewer than 16" not in caplog.text
    write(file, '[server]\napi_keys = { anna = "short" }\n' + TEXT)
    source.read()
    source.read()
    assert caplog.text.count("has fewer than 16 characters") == 1
    write(file, '[server]\napi_keys_file = "keys.txt"\n' + TEXT)
    keys.unlink()
    with pytest.raises(ConfigError, match=r"keys\.txt cannot be read"):
        source.read()


@pytest.mark.parametrize("text", ["", "[models.a\n", "[models.c]\nengin = 1\n", 'default_model = "c"\n' + TEXT])
def test_mistake_is_refused(file: Path, text: str) -> None:
    source = source_of(file)
    write(file, text)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        source.read()


def test_removed_file_is_a_mistake(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next file of the search is the delivered one: its models would replace all."""
    monkeypatch.chdir(file.parent)
    source = ConfigSource(None, {}, load_config(None))
    assert list(source.read().models) == ["a", "b"]
    for text, problem in (
        ("[models", "not valid TOML"),
        ("[models.a\nqueue=1", "not valid TOML"),
        ("a = 1\n", "is not there any more"),
    ):
        write(file, text)  # looks like a file of another program
        with pytest.raises(ConfigError, match=problem):
            source.read()
    file.unlink()
    with pytest.raises(ConfigError, match="is not there any more"):
        source.read()
    file.write_text('[models.c]\nengine = "scripted"\n', encoding="utf-8")
    assert list(source.read().models) == ["c"]


def test_bundle_gets_its_path(file: Path, tiny: Path) -> None:
    source = source_of(file, models_provider="cpu")
    shutil.copytree(tiny, file.parent / "models" / "tiny")
    add_model(find_user_config(file), "tiny", {"path": "tiny"})
    config = source.read()
    found = source.prepared("tiny", config.models["tiny"], config.models_dir)
    assert isinstance(found, LocalModel)
    assert found.path == str(file.parent / "models" / "tiny") and found.provider == "cpu"
    assert source.prepared("a", config.models["a"], config.models_dir) is config.models["a"]


def test_package_gets_the_variant_of_this_chip(npu: NpuDevice, file: Path, tiny: Path) -> None:
    """As at a start of the gateway."""
    if npu.soc != 60:
        pytest.skip("the package is for Snapdragon X Elite")
    source = source_of(file, models_provider="qnn")
    write_package(file.parent / "models" / "p", tiny, {"other": X2_ELITE, "x-elite": NPU})
    write(file, TEXT + '[models.p]\npath = "p"\n')
    config = source.read()
    found = source.prepared("p", config.models["p"], config.models_dir)
    assert isinstance(found, LocalModel) and found.path == str(file.parent / "models" / "p" / "x-elite")


def test_bundle_that_is_missing_or_must_be_built_is_refused(file: Path) -> None:
    source = source_of(file, models_provider="cpu")
    folder = file.parent / "models"
    with pytest.raises(BundleError, match="There is no bundle "):
        source.prepared("late", LocalModel(path=str(folder / "late"), provider="cpu"), folder)
    with pytest.raises(BundleError, match="models --prepare` builds it"):
        source.prepared("late", LocalModel(path=str(folder / "late"), source="x.gguf", provider="cpu"), folder)
    with pytest.raises(BundleError, match="npu-gateway pull"):
        source.prepared("late", GenieModel(path=str(folder / "late")), folder)
    with pytest.raises(BundleError, match="late, which drafts for it, has no bundle yet; `npu-gateway models"):
        source.prepared("here", LocalModel(path=str(folder), draft=str(folder / "late"), provider="cpu"), folder)


def test_model_with_other_tokens_that_is_to_draft_is_refused(file: Path, tiny: Path) -> None:
    """Before the model that answers is replaced."""
    folder = file.parent / "models"
    small = with_tokenizer(tiny, folder, shift_all)
    source, model = source_of(file, models_provider="cpu"), LocalModel(path=str(tiny), provider="cpu")
    with pytest.raises(BundleError, match="small cannot draft for big: only"):
        source.prepared("big", replace(model, draft=str(small)), folder)
    source.prepared("big", replace(model, draft=str(tiny)), folder)


def test_first_request_builds_a_missing_bundle_that_is_for_demand(file: Path) -> None:
    folder = file.parent / "models"
    model = LocalModel(path=str(folder / "late"), source="x.gguf", load="demand", provider="cpu")
    assert source_of(file, models_provider="cpu").prepared("late", model, folder) is model


def test_serve_name_keeps_the_models_that_it_left_out(file: Path) -> None:
    source = source_of(file, only="a")
    write(file, TEXT.replace("[models.b]", "queue = 3\n[models.b]") + '[models.c]\nengine = "scripted"\n')
    config = source.read()
    assert list(config.models) == ["a", "c"] and config.models["a"].queue == 3 and config.default_model == "a"
    write(file, TEXT.replace("[models.b]", 'fallback = "b"\n[models.b]'))
    assert list(source.read().models) == ["a", "b"]  # it is a fallback now
    write(file, '[models.b]\nengine = "scripted"\n')
    with pytest.raises(ConfigError, match=r"\[models\.a\] is not in .* any more"):
        source.read()


def test_serve_name_of_a_model_that_the_file_lacks_goes_on(file: Path) -> None:
    """`serve` has pulled it, and could not change the file."""
    running = only_model(load_config(file), "a")
    lacking = file.with_name("other.toml")
    lacking.write_text('[models.b]\nengine = "scripted"\n', encoding="utf-8")
    source = ConfigSource(lacking, {}, running, "a")
    assert source.read().models == running.models


def test_fallback_that_is_not_served_is_left_out(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = source_of(file, only="a")
    new = '[models.c]\nengine = "scripted"\nfallback = "a"\n[models.d]\nengine = "scripted"\nfallback = "b"\n'
    write(file, TEXT + new + '[models.e]\nengine = "scripted"\nfallback = "c"\n')
    fallbacks = {name: model.fallback for name, model in source.read().models.items()}
    assert fallbacks == {"a": None, "c": "a", "d": None, "e": "c"}
    source.read()
    assert caplog.text.count("d: its fallback b is not served") == 1
