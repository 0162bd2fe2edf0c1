"""A bundle is compared with a machine by its small files and sizes, in a folder and in a zip."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gateway.bundles.identify import identify
from gateway.bundles.preflight.preflight import Finding, Machine, preflight, require_fit
from gateway.bundles.preflight.stated import is_newer
from gateway.errors import BundleError

ELITE = Machine(
    name="Snapdragon X Elite",
    catalog="npu-gateway catalog --chip x-elite",
    socs=(60,),
    architecture=73,
    qairt="2.51.0",
    memory=16_000_000_000,
    available=8_000_000_000,
)
GENIE = json.dumps({"dialog": {"type": "basic"}})
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def metadata(htp: int = 73, soc: int = 60, qairt: str = "2.45.0.260326154327", name: str = "qualcomm-x") -> str:
    attributes = {"name": name, "htp_version": htp, "soc_model": soc}
    return json.dumps({"tool_versions": {"qairt": qairt}, "chipset_attributes": attributes})


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ({"genie_config.json": GENIE, "part_1.bin": "x" * 2000} | files).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def findings(folder: Path, machine: Machine = ELITE) -> list[Finding]:
    """Those of the folder, which are the same as those of a zip."""
    found = list(preflight(identify(folder), machine, "m"))
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in folder.rglob("*"):
            opened.write(file, f"inner/{file.relative_to(folder).as_posix()}")
    with zipfile.ZipFile(archive) as opened:
        assert list(preflight(identify(zipfile.Path(opened)), machine, "m")) == found
    return found


def refusal(folder: Path, machine: Machine = ELITE) -> str:
    (finding,) = findings(folder, machine)
    assert finding.level == "refused" and "\n" not in finding.text
    return finding.text


@pytest.mark.parametrize("files", [{}, {"metadata.json": metadata()}, {"metadata.json": metadata(qairt="2.51.0.9")}])
def test_fitting_bundle_has_no_finding(tmp_path: Path, files: dict[str, str]) -> None:
    assert findings(write(tmp_path / "m", **files)) == []


@pytest.mark.parametrize(
    ("version", "soc", "name"), [(75, 57, "qualcomm-snapdragon-8gen3"), (79, 69, "qualcomm-snapdragon-8-elite")]
)
def test_bundle_for_a_phone_is_refused_with_the_command(tmp_path: Path, version: int, soc: int, name: str) -> None:
    text = refusal(write(tmp_path / "m", **{"metadata.json": metadata(version, soc, name=name)}))
    assert text.startswith(f"m is compiled for {name} (Hexagon v{version}) and this NPU is v73 (Snapdragon X Elite). ")
    assert "`npu-gateway catalog --chip x-elite`" in text


def test_phone_with_the_same_hexagon_version_is_refused(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "m", **{"metadata.json": metadata(73, 43)}))
    assert "chip 43, and this NPU is chip 60" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.yaml", "components:\n  ar1:\n    x: 1\nchipset_attributes:\n  name: x\n  htp_version: 81\n"),
        ("htp_backend_ext_config.json", '{"devices": [{"soc_model": 88, "dsp_arch": "v81", "cores": []}]}'),
    ],
)
def test_chip_is_read_from_each_file(tmp_path: Path, name: str, content: str) -> None:
    assert "Hexagon v81" in refusal(write(tmp_path / "m", **{name: content}))
    assert findings(write(tmp_path / "m"), Machine()) == []  # the chip of the machine is not known


def test_newer_runtime_is_refused_and_an_older_one_is_not(tmp_path: Path) -> None:
    for version, is_refused in {
        "2.51.1": True,
        "2.100.0": True,
        "3.0.0": True,
        "2.51.0": False,
        "2.9.9": False,
    }.items():
        folder = write(tmp_path / version, **{"tool-versions.yaml": f"tool_versions:\n  qairt: {version}.260326\n"})
        if is_refused:
            text = refusal(folder)
            assert f"QAIRT {version}.260326" in text and "the installed runtime has 2.51.0" in text
            assert "`python -m pip install --upgrade onnxruntime-qnn`" in text
        else:
            assert findings(folder) == []


@pytest.mark.parametrize("name", ["part_1.bin", "tokenizer.json", "tokenizer_config.json"])
def test_lfs_pointer_is_refused(tmp_path: Path, name: str) -> None:
    text = refusal(write(tmp_path / "m", **{name: LFS}))
    assert text.startswith(f"m: {name} is a Git LFS pointer") and "`git lfs pull`" in text


def test_configuration_that_is_an_lfs_pointer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"m: genie_config\.json is a Git LFS pointer.*`git lfs pull`"):
        identify(write(tmp_path / "m", **{"genie_config.json": LFS}))


def test_empty_and_truncated_files_are_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "empty", **{"part_1.bin": ""})).startswith("m: part_1.bin is empty")
    zeros = write(tmp_path / "zeros", **{"part_1.bin": "x" * 2000 + "\0" * 100_000})
    (unfinished,) = preflight(identify(zeros), ELITE, "m")  # a zip has no unfinished files in it
    assert unfinished.text.startswith("m: part_1.bin ends with zeros only: its download was not finished")
    weights = {
        "genai_config.json": '{"model": {"decoder": {"filename": "model.onnx"}}}',
        "weights.bin": "x" + "\0" * 100_000,
    }
    assert findings(write(tmp_path / "weights", **weights)) == []  # those of a padded vocabulary
    hashes = json.dumps({"files": {"part_1.bin": {"size": 2001}, "sub/gone.bin": {"size": 1}}})
    truncated, missing = findings(write(tmp_path / "cut", **{"hashes.json": hashes}))
    assert truncated.text.startswith("m: part_1.bin has 2000 bytes instead of 2001, so it is truncated")
    assert missing.text.startswith("m: sub/gone.bin is missing")


def test_unknown_version_is_not_newer() -> None:
    assert not is_newer("", "2.51.0") and not is_newer("2.60.0", "") and not is_newer("9", "2.51.0")


def test_memory_is_compared(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "genie_config.json").write_text(GENIE, encoding="utf-8")
    for part in (1, 2):
        with (folder / f"part_{part}.bin").open("wb") as file:
            file.truncate(2_999_999_999)
            file.seek(0, 2)
            file.write(b"x")
    found = identify(folder)
    assert list(preflight(found, ELITE, "m")) == []
    (warning,) = preflight(found, Machine(memory=8_000_000_000, available=2_000_000_000), "m")
    assert warning.level == "warning" and "needs about 6.0 GB of memory, and 2.0 GB are free now" in warning.text
    (refused,) = preflight(found, Machine(memory=6_900_000_000, available=6_000_000_000), "m")
    assert refused.level == "refused" and "needs about 7.0 GB of memory, and this machine has 6.9 GB" in refused.text


def test_many_contexts_are_a_warning(tmp_path: Path) -> None:
    parts = {f"part_{number}.bin": "x" for number in range(1, 9)}
    (warning,) = findings(write(tmp_path / "m", **parts))
    assert warning.level == "warning" and "8 context binaries" in warning.text


def test_layout_that_is_not_served_is_refused_first(tmp_path: Path) -> None:
    vision = json.dumps({"dialog": {"embedding": {"size": 256}}})
    text = refusal(write(tmp_path / "m", **{"genie_config.json": vision, "metadata.json": metadata(79)}))
    assert text.startswith("m is a vision model")


def test_first_refusal_is_raised(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", **{"metadata.json": metadata(79), "part_1.bin": ""})
    with pytest.raises(BundleError, match="m is compiled for"):
        require_fit(folder, ELITE)
    with pytest.raises(BundleError, match="m is compiled for"):
        require_fit(folder / "genie_config.json", ELITE)
    with pytest.raises(BundleError, match="is empty"):
        require_fit(folder, Machine())


def test_hostile_small_files_state_nothing(tmp_path: Path) -> None:
    for number, content in enumerate(["", "[]", '"soc_model": ' + "9" * 5000, "qairt: " + "1." * 9000, "\x00" * 99]):
        folder = write(tmp_path / str(number), **{"metadata.yaml": content})
        assert [finding.level for finding in findings(folder)] in ([], ["refused"])


@pytest.mark.parametrize("start", ['"chipset_attributes":', "input_ids:", "input_ids: dtype: x, shape:"])
def test_megabytes_of_spaces_are_searched_once(tmp_path: Path, start: str) -> None:
    """A search that tries them again in each length would take hours, and stop the whole process."""
    folder = write(tmp_path / "m", **{"metadata.json": start + " " * 2_000_000})
    code = (
        "import sys, pathlib\n"
        "from gateway.bundles.genie.metadata import read_metadata\n"
        "from gateway.bundles.preflight.stated import read_stated\n"
        "print(read_stated(pathlib.Path(sys.argv[1])), read_metadata(pathlib.Path(sys.argv[1])))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], timeout=120, check=True, capture_output=True)
    assert b"Stated(" in ended.stdout
