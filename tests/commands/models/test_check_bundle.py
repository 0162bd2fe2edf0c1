"""`npu-gateway check FOLDER|ZIP|URL`: layout, chip, what is missing, corrected, needed. Nothing of it changes."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import cli
from gateway.bundles.hashes import write_hashes
from tests.bundles.test_identify import LAYOUTS, REFUSED, write
from tests.support.encoders.workers import build
from tests.support.model_server import serve_models

Check = Callable[..., tuple[int, str]]
ELITE = ("--chip", "x-elite")  # no NPU needs to be found


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    def run(*arguments: object) -> tuple[int, str]:
        code = cli.main(["check", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out + captured.err

    return run


def verdict(check: Check, *arguments: object) -> dict[str, Any]:
    code, text = check(*arguments, "--json")
    (found,) = json.loads(text)
    assert code == (0 if found["loads"] else 1)
    return found  # type: ignore[no-any-return]


def zipped(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(folder.rglob("*")):
            opened.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def published(published_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published_bundle, tmp_path / "qwen3-4b"))


def test_published_bundle_loads_here(check: Check, published: Path) -> None:
    before = contents(published)
    code, text = check(published)
    assert code == 0 and text.startswith("qwen3-4b  loads on Snapdragon X Elite\n")
    assert "  made for   qualcomm-snapdragon-x-elite (Hexagon v73), QAIRT 2.45.0.260326154327\n" in text
    assert "context of 128 tokens; 3 binaries with 12 graphs" in text
    assert "  loaded     12 networks on the emulated NPU in " in text
    assert "  corrected  `poll` is off" in text
    assert contents(published) == before


def test_encoder_is_examined_like_a_chat_model(check: Check, tmp_path: Path) -> None:
    bundle = build(tmp_path, "bert-mean")
    code, text = check(bundle, *ELITE)
    assert code == 0 and text.startswith("bert-mean  loads on Snapdragon X Elite\n"), text
    assert (
        "  layout     an encoder, for embeddings or rankings\n" in text
        and "0 MB of memory; context of 64 tokens" in text
    )
    assert verdict(check, zipped(bundle), *ELITE)["context"] == 64
    assert verdict(check, tmp_path / "bert-mean-source", *ELITE)["layout"] == "huggingface"
    (bundle / "tokenizer.json").unlink()
    found = verdict(check, bundle, *ELITE)
    assert not found["loads"] and "tokenizer.json" in found["missing"][0]


def test_zip_and_url_give_the_verdict_of_the_folder(check: Check, published: Path) -> None:
    archive = zipped(published)
    from_zip = verdict(check, archive, *ELITE)
    assert from_zip["loads"] and from_zip["corrected"] and (from_zip["graphs"], from_zip["loaded"]) == (None, "")
    assert (from_zip["target"], from_zip["layout"], from_zip["binaries"]) == ("qwen3-4b", "genie", 3)
    with serve_models() as server:
        url = server.add("releases/qwen3-4b.zip", archive.read_bytes())
        assert verdict(check, url, *ELITE) == from_zip
        assert "sends whole files only" in check(server.add("w/m.zip", archive.read_bytes(), ranges=False), *ELITE)[1]
    other = verdict(check, archive, "--chip", "x2-elite")
    assert not other["loads"] and "`npu-gateway catalog --chip x2-elite`" in other["refused"][0]
    assert verdict(check, archive, "--chip", "x-plus")["loads"]


def test_repository_gives_the_verdict_of_its_folder(
    check: Check, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_zip = verdict(check, zipped(published), *ELITE)
    with serve_models() as server:
        monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", server.url)
        files = {file.name: file.read_bytes() for file in published.iterdir() if file.is_file()}
        server.repos["org/Qwen3-4B"] = {"README.md": b"", **{f"x-elite/{name}": files[name] for name in files}}
        for text in ("hf:org/Qwen3-4B", "hf:org/Qwen3-4B/x-elite", "https://huggingface.co/org/Qwen3-4B"):
            assert verdict(check, text, *ELITE) == from_zip
        assert not any(path.endswith(".bin") for path, _ in server.requests)
        server.repos["org/Qwen3-4B"]["x-elite/tokenizer.json"] = b"version https://git-lfs.github.com/spec/v1\n"
        assert "tokenizer.json is a Git LFS pointer" in verdict(check, "hf:org/Qwen3-4B", *ELITE)["refused"][0]
        server.repos["org/Weights"] = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(9)}
        assert verdict(check, "hf:org/Weights", *ELITE)["layout"] == "huggingface"
        server.repos["org/Zip"] = {"m.zip": zipped(published).read_bytes()}
        assert verdict(check, "hf:org/Zip/m.zip", *ELITE)["binaries"] == 3
        assert check("hf:org/Nothing", *ELITE) == (
            1,
            "npu-gateway: There is no org/Nothing on the Hub, or it is private: correct it, or run `hf auth login`.\n",
        )


def test_configured_model_is_examined_by_its_name(check: Check, published: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[models.m]\npath = {str(published)!r}\n[models.s]\nengine = "scripted"\n', encoding="utf-8")
    config = ("--config", file)
    found = verdict(check, "m", "--chip", "x2-elite", *config)
    assert not found["loads"] and found["target"] == "qwen3-4b"
    assert verdict(check, "--chip", "x2-elite", *config) == found
    code, text = check("s", *ELITE, *config)
    assert code == 2 and "Model 's' has no files here to examine." in text
    code, text = check("--json", *config)
    assert code == 0 and [(row["model"], row["state"]) for row in json.loads(text)] == [
        ("m", "unknown"),
        ("s", "no files"),
    ]


def test_published_speed_is_shown_for_a_known_model(check: Check, tmp_path: Path) -> None:
    genie = {"dialog": {"type": "basic"}}
    names = json.dumps({"model_name": "Llama-v3.2-3B-Instruct", "model_id": "llama_v3_2_3b_instruct"})
    folder = write(tmp_path / "m", {"genie_config.json": json.dumps(genie), "metadata.json": names})
    assert verdict(check, zipped(folder), *ELITE)["tokens_per_s"] == 19.7
    folder = write(tmp_path / "own", {"genie_config.json": json.dumps(genie)})
    assert verdict(check, zipped(folder), *ELITE)["tokens_per_s"] is None


def test_mend_writes_beside_and_changes_nothing(check: Check, published: Path) -> None:
    before = contents(published)
    (written,) = verdict(check, zipped(published), "--mend", *ELITE)["written"]
    assert Path(written) == published.with_name("qwen3-4b-mended") / "genie_config.json"
    mended = json.loads(Path(written).read_text(encoding="utf-8"))
    assert mended["dialog"]["engine"]["backend"]["QnnHtp"]["poll"] is False
    assert contents(published) == before
    shutil.copy(written, published)
    assert verdict(check, zipped(published), *ELITE)["corrected"] == []


def test_scale_of_a_bare_cast_is_found_and_written(check: Check, ai_hub_exported: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(ai_hub_exported, tmp_path / "exported"))
    missing = verdict(check, bundle, *ELITE)
    assert not missing["loads"] and "no tokenizer.json" in missing["missing"][0]
    (bundle / "tokenizer.json").write_text("{}", encoding="utf-8")
    found = verdict(check, bundle, "--mend")
    assert found["loads"] and found["loaded"]
    assert any("the logits have no scale" in sentence for sentence in found["corrected"])
    assert sorted(Path(file).name for file in found["written"]) == ["dequantizer.onnx", "genai_config.json"]
    for file in found["written"]:
        shutil.copy(file, bundle)
    assert verdict(check, bundle, *ELITE)["corrected"] == []


@pytest.mark.parametrize(("layout", "files"), [row for row in LAYOUTS if row[0] in REFUSED])
def test_layout_that_is_not_served_is_one_sentence(
    check: Check, tmp_path: Path, layout: str, files: dict[str, str]
) -> None:
    folder = write(tmp_path / "some-model", files)
    for target in (folder, zipped(folder)):
        if files:
            found = verdict(check, target, *ELITE)
            assert found["layout"] == layout and len(found["refused"]) == 1
            assert "`npu-gateway catalog`" in found["refused"][0]


def test_truncated_binary_and_wrong_hash_are_found(check: Check, published: Path) -> None:
    part = published / "tiny_part_2_of_3.bin"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    assert "tiny_part_2_of_3.bin is damaged or no context binary" in verdict(check, published)["refused"][0]
    part.write_bytes(whole)
    write_hashes(published)
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "tiny_part_2_of_3.bin " in verdict(check, published)["refused"][0]


def test_missing_files_are_listed(check: Check, published: Path) -> None:
    for name in ("tokenizer.json", "tiny_part_3_of_3.bin"):
        (published / name).unlink()
    for target in (published, zipped(published)):
        found = verdict(check, target, *ELITE)
        assert [sentence.split(",")[0] for sentence in found["missing"]] == ["tokenizer.json", "tiny_part_3_of_3.bin"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nowhere/model", "There is no model, file or folder 'nowhere/model'"),
        ("file.zip", "is neither a folder nor a zip"),
        ("ftp://example.com/m.zip", "is no address that can be downloaded"),
        ("hf:org", "'hf:org' does not name a model. Write hf:ORG/REPO"),
    ],
)
def test_wrong_target_is_a_mistake_of_the_command_line(check: Check, tmp_path: Path, target: str, words: str) -> None:
    (tmp_path / "file.zip").write_text("text", encoding="utf-8")
    code, text = check(tmp_path / target if target == "file.zip" else target, *ELITE)
    assert code == 2 and words in text


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(400)])
def test_damaged_zip_is_one_sentence(check: Check, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.zip").write_bytes(content)
    code, text = check(tmp_path / "m.zip", *ELITE)
    assert code == 1 and len(text.splitlines()) <= 2


def test_options_need_a_bundle(check: Check, tmp_path: Path) -> None:
    bundle = str(tmp_path / "m.zip")
    for arguments in (["m", bundle], ["--record", bundle], ["--record", "--mend"], ["nothing", *ELITE]):
        assert check(*arguments)[0] == 2
