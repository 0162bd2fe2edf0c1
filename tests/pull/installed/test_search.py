"""Models of other programs: found, described, and left as they are."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.builder.sources.detect import open_source
from gateway.bundles.preflight.preflight import Machine
from gateway.config.file import load_config
from gateway.config.tables import LocalModel
from gateway.pull.installed import search
from gateway.pull.installed.programs import Program, program_folders
from gateway.pull.installed.search import Installed, find_installed
from tests.support.other_programs import FOUNDRY, GENIE, PIPELINE, bundle, ollama_model, state, write_everything
from tests.support.tiny_gguf import write_tiny_gguf


def find(home: Path) -> list[Installed]:
    own = [each for each in program_folders(home, {}, "linux") if each.folder.is_relative_to(home)]
    return find_installed(own)


def test_models_of_every_program_are_found_and_nothing_is_changed(tmp_path: Path) -> None:
    write_everything(tmp_path)
    before = state(tmp_path)
    found = find(tmp_path)
    assert state(tmp_path) == before
    assert [(model.program, model.name, model.layout, bool(model.table)) for model in found] == [
        ("Foundry Local", "phi-3.5-mini-instruct-generic-cpu-1", "graph", True),
        ("Foundry Local", "qwen2.5-7b-instruct-qnn-npu-2", "pipeline", True),
        ("AI Toolkit", "qnn-deepseek-r1-distill-qwen-7b", "pipeline", True),
        ("AI Toolkit", "phi-4-qairt", "dlc", False),
        ("GenieX", "qwen3-4b", "genie", True),
        ("GenieX", "qwen3-vl-4b", "vision", False),
        ("AI Dev Home", "phi-3.5-mini", "binaries", False),
        ("AI Dev Home", "llama3.2-3b", "genie", True),
        ("LM Studio", "split-00001-of-00002", "gguf", True),
        ("LM Studio", "tiny-1b-q4_0", "gguf", True),
        ("AnythingLLM", "llama_v3_2_3b_chat_8k", "genie", True),
        ("Ollama", "tiny-1b", "gguf", True),
    ]
    assert all(bool(model.table) != bool(model.problem) for model in found)
    assert all(model.bytes >= 1000 for model in found)


def test_model_that_does_not_fit_this_machine_has_the_reason(tmp_path: Path) -> None:
    models = tmp_path / ".cache" / "geniex" / "models"
    stated = {"chipset_attributes": {"name": "qualcomm-snapdragon-8-elite", "htp_version": "v79"}}
    bundle(models / "phone", genie_config=GENIE, metadata=stated)
    pointer = bundle(models / "pointer", genie_config=GENIE) / "part_1_of_1.bin"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    called: list[int] = []

    def machine() -> Machine:
        called.append(1)
        return Machine(name="Snapdragon X Elite", architecture=73, socs=(60,))

    own = [each for each in program_folders(tmp_path, {}, "linux") if each.folder.is_relative_to(tmp_path)]
    phone, lfs = find_installed(own, machine)
    assert not phone.table and "is compiled for qualcomm-snapdragon-8-elite (Hexagon v79)" in phone.problem
    assert not lfs.table and "part_1_of_1.bin" in lfs.problem
    assert called == [1]  # a bundle that states nothing is not compared with the chip


def test_tables_are_a_valid_configuration_with_absolute_paths(tmp_path: Path) -> None:
    write_everything(tmp_path)
    found = [model for model in find(tmp_path) if model.table]
    file = tmp_path / "config.toml"
    file.write_text("\n".join(model.table for model in found), encoding="utf-8")
    config = load_config(file, {})
    assert list(config.models) == [model.name for model in found]
    for model in found:
        table = config.models[model.name]
        assert isinstance(table, LocalModel)
        assert (table.source if model.layout == "gguf" else table.path) == model.path


def test_blob_of_ollama_is_a_source_that_the_builder_opens(tmp_path: Path) -> None:
    blob = ollama_model(tmp_path / ".ollama" / "models", "library/llama3.2/3b")
    (model,) = find(tmp_path)
    assert (model.name, model.path) == ("llama3.2-3b", str(blob))
    assert open_source(Path(tomllib.loads(model.table)["models"]["llama3.2-3b"]["source"])).config.layers > 0


def test_names_of_other_hosts_and_owners_are_whole(tmp_path: Path) -> None:
    models = tmp_path / ".ollama" / "models"
    ollama_model(models, "library/a/latest")
    ollama_model(models, "me/a/latest")
    ollama_model(models, "me/a/latest", host="hf.co")
    assert sorted(model.name for model in find(tmp_path)) == ["a-latest", "hf.co-me-a-latest", "me-a-latest"]


def test_one_name_twice_gets_a_number(tmp_path: Path) -> None:
    for program in (".aitk/models", ".foundry/cache/models"):
        bundle(tmp_path / program / "owner" / "qwen" / "v1", genai_config=PIPELINE)
    assert [model.name for model in find(tmp_path)] == ["qwen", "qwen-2"]


def test_architecture_that_is_not_built_is_named(tmp_path: Path) -> None:
    ollama_model(tmp_path / ".ollama" / "models", "library/a/1b", architecture="mamba")
    (model,) = find(tmp_path)
    assert model.table == ""
    assert model.problem.startswith("The gateway builds llama, mistral, qwen2, ")
    assert " from a GGUF file, and this one is 'mamba'." in model.problem


def test_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ".lmstudio" / "models" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "c.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (model,) = find(tmp_path)
    assert (model.table, model.problem) == ("", "It is no GGUF file.")


@pytest.mark.parametrize("content", [b"{", b"[" * 200_000, b"\xff", b"[]", b"{" + b" " * (17 << 20) + b"}"])
def test_damaged_configuration_is_a_row_with_the_reason(tmp_path: Path, content: bytes) -> None:
    bundle(tmp_path / FOUNDRY / "a")
    (tmp_path / FOUNDRY / "a" / "genai_config.json").write_bytes(content)
    (model,) = find(tmp_path)
    assert model.table == "" and "genai_config.json" in model.problem


@pytest.mark.parametrize(
    "manifest",
    [b"{", b"{}", b'{"layers": [{"digest": "sha256:../../../secret", "mediaType": "x"}]}', b"\xff", b"[" * 100_000],
)
def test_damaged_manifest_of_ollama_is_left_out(tmp_path: Path, manifest: bytes) -> None:
    models = tmp_path / ".ollama" / "models"
    ollama_model(models, "library/a/1b")
    (models / "manifests" / "registry.ollama.ai" / "library" / "a" / "2b").write_bytes(manifest)
    assert [model.name for model in find(tmp_path)] == ["a-1b"]


def test_digest_cannot_lead_out_of_the_blobs(tmp_path: Path) -> None:
    models = tmp_path / ".ollama" / "models"
    ollama_model(models, "library/a/1b")
    write_tiny_gguf(models / "secret")
    for digest in ("sha256:../secret", "../secret", f"sha256:{'0' * 64}"):
        layer = f'{{"layers": [{{"digest": "{digest}", "mediaType": "application/vnd.ollama.image.model"}}]}}'
        (models / "manifests" / "registry.ollama.ai" / "library" / "a" / "2b").write_text(layer, encoding="utf-8")
        assert [model.name for model in find(tmp_path)] == ["a-1b"]


def test_search_is_limited_and_follows_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / ".aitk" / "models"
    bundle(root / "1" / "2" / "3" / "4" / "5" / "deep", genai_config=PIPELINE)
    bundle(root / "1" / "2" / "3" / "4" / "5" / "6" / "too-deep", genai_config=PIPELINE)
    bundle(root / ".inflight" / "half", genai_config=PIPELINE)
    bundle(tmp_path / "elsewhere", genai_config=PIPELINE)
    with suppress(OSError):  # Windows without the right to make links
        (root / "1" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [model.name for model in find(tmp_path)] == ["deep"]
    monkeypatch.setattr(search, "_MOST_FOLDERS", 3)
    assert find(tmp_path) == []


def test_folder_that_is_a_link_to_another_disk_is_searched(tmp_path: Path) -> None:
    bundle(tmp_path / "disk" / "models" / "qwen", genai_config=PIPELINE)
    (tmp_path / ".aitk").mkdir()
    try:
        (tmp_path / ".aitk" / "models").symlink_to(tmp_path / "disk" / "models", target_is_directory=True)
    except OSError:
        pytest.skip("this user may not make links")
    assert [model.name for model in find(tmp_path)] == ["qwen"]


def test_folders_of_another_user_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, who may run the tests, no folder is closed: the system call is replaced."""
    root = tmp_path / ".aitk" / "models"
    bundle(root / "closed", genai_config=PIPELINE)
    bundle(root / "open" / "qwen", genai_config=PIPELINE)
    ollama_model(tmp_path / ".ollama" / "models", "library/a/1b")
    scandir, listdir = os.scandir, os.listdir

    def refusing(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def refuse(path: Any) -> Any:
            if Path(path).name in ("closed", "blobs"):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path)

        return refuse

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    assert [model.name for model in find(tmp_path)] == ["qwen"]


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    programs = [*program_folders(tmp_path, {}, "win32"), Program("X", tmp_path / "file"), Program("Ollama", tmp_path)]
    assert find_installed(programs) == []
