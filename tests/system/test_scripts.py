"""The scripts of the repository: set-up of the environment, lock files, word list, selection of fast tests.

The set-up runs on a copy of the repository. The copy's lock file has only the packages that `serve --help` needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts.words import files, hits
from tests.conftest import LONGEST
from tests.support.paths import ROOT
from tests.support.processes import environment

SCRIPTS = ROOT / "scripts"
ENOUGH = ("hatchling", "msgspec", "packaging", "pathspec", "pluggy", "trove-classifiers")
PATIENCE_S = 300.0


def entries(lock: str) -> dict[str, str]:
    """NAME==VERSION -> its entry in the lock file."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {entry.split()[0]: entry for entry in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE) if "==" in entry}


def names(lock: str) -> set[str]:
    return {pin.split("==")[0] for pin in entries(lock)}


class TestLock:
    @pytest.mark.parametrize("lock", ["requirements.lock", "requirements-test.lock"])
    def test_every_pin_has_hashes_and_no_index(self, lock: str) -> None:
        for pin, entry in entries(lock).items():
            assert re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin)
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry)
            assert "://" not in entry and "--index" not in entry

    def test_every_dependency_is_locked(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        runtime = {re.split("[^a-z0-9-]", line)[0] for line in project["project"]["dependencies"]}
        groups = project["dependency-groups"]
        tests = {re.split("[^a-z0-9-]", line)[0] for line in (*groups["test"], *groups["install"])}
        assert runtime <= names("requirements.lock")
        assert runtime | tests <= names("requirements-test.lock")

    def test_test_lock_contains_the_serve_lock(self) -> None:
        assert entries("requirements.lock").items() <= entries("requirements-test.lock").items()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a short lock file and a complete environment."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("scripts", "gateway"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "config.toml"):
        shutil.copy(ROOT / part, folder / part)
    short = [entry for pin, entry in entries("requirements.lock").items() if pin.split("==")[0] in ENOUGH]
    (folder / "requirements.lock").write_text("".join(short), encoding="utf-8")
    (folder / "requirements-test.lock").write_text("# tests\n" + "".join(short), encoding="utf-8")
    done = serve_help(folder)
    assert done.returncode == 0, done.stderr
    assert "Making" in done.stderr
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(folder / "scripts" / "serve.py"), *arguments]


def serve_help(folder: Path) -> subprocess.CompletedProcess[str]:
    variables = environment()
    del variables["PYTHONPATH"]  # the environment must not import from this repository
    return subprocess.run(
        command(folder, "--help"), env=variables, capture_output=True, encoding="utf-8", timeout=PATIENCE_S
    )


def python_of(folder: Path) -> Path:
    return folder / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def installed(folder: Path) -> dict[Path, int]:
    """Every file of the environment, except compiled ones, with its time of change."""
    files = (path for path in (folder / ".venv").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.stat().st_mtime_ns for path in files}


class TestEnvironment:
    def test_first_start_runs_the_command(self, copy: Path) -> None:
        assert "usage: npu-gateway serve" in serve_help(copy).stdout

    def test_second_start_installs_nothing(self, copy: Path) -> None:
        before = installed(copy)
        done = serve_help(copy)
        assert (done.returncode, done.stderr) == (0, "")
        assert installed(copy) == before

    def test_package_is_installed_with_its_command(self, copy: Path) -> None:
        script = python_of(copy).with_name("npu-gateway.exe" if sys.platform == "win32" else "npu-gateway")
        shown = subprocess.run([script, "--version"], capture_output=True, encoding="utf-8", check=True)
        assert shown.stdout.startswith("npu-gateway ")

    def test_exit_code_of_the_command_is_returned(self, copy: Path) -> None:
        assert subprocess.call(command(copy, "--port", "x"), stderr=subprocess.DEVNULL) == 2

    def test_wheel_with_wrong_hash_is_refused_and_two_concurrent_starts_install_the_corrected_lock_once(
        self, copy: Path
    ) -> None:
        """The refusal leaves an environment that is not complete."""
        lock = copy / "requirements.lock"
        right = lock.read_text(encoding="utf-8")
        lock.write_text(re.sub("sha256:[0-9a-f]{8}", "sha256:00000000", right), encoding="utf-8")
        done = serve_help(copy)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith("the next start tries again from the beginning.")
        assert python_of(copy).exists()
        lock.write_text(right + "# changed\n", encoding="utf-8")
        starts = [
            subprocess.Popen(command(copy, "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
            for _ in range(2)
        ]
        outputs = [start.communicate(timeout=PATIENCE_S) for start in starts]
        assert [start.returncode for start in starts] == [0, 0]
        messages = "".join(errors for _, errors in outputs)
        assert messages.count("Making") == messages.count("Installing requirements") == 1
        assert serve_help(copy).stderr == ""

    def test_old_python_gets_a_message(self) -> None:
        code = "import sys; sys.version_info = (3, 9, 1); import environment"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("npu-gateway needs Python 3.11 or newer")


def test_every_dependency_has_a_wheel_for_windows_on_arm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, check_wheels; sys.exit(check_wheels.main())"],
        cwd=SCRIPTS, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^(\d+) of \1 dependencies have a wheel for win_arm64$", done.stdout, re.MULTILINE)


def test_arm64_script_installs_the_lock_of_aarch64_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from arm64 import requirements

    chosen = {entry.split("==")[0]: entry for entry in requirements("3.11")}
    foreign = {"colorama", "onnxruntime-qnn", "pyreadline3", "tzdata"}  # Windows, or x86 only
    assert foreign <= names("requirements-test.lock") and not foreign & chosen.keys()
    assert {"onnxruntime", "numpy", "pytest"} <= chosen.keys()
    assert all(re.fullmatch(r"\S+==\S+ \\\n(    --hash=.*\n)+", entry) for entry in chosen.values())


def test_ci_runs_the_documented_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 0 < script.index("scripts/check.py") < script.index("scripts/test.py")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111 or os.name == "nt"


def test_fast_run_leaves_out_models_processes_and_system_tests() -> None:
    listing = [sys.executable, "-m", "pytest", "--fast", "--collect-only", "-q", "-p", "no:cacheprovider"]
    chosen = {"commands", "support", "system", "worker"}
    listing += [f"--ignore={path}" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name not in chosen]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=PATIENCE_S)
    files = {line.partition("::")[0] for line in done.stdout.splitlines()}
    assert {"tests/worker/test_sampling.py", "tests/worker/grammar/test_constraint.py"} <= files, (
        done.stdout + done.stderr
    )
    assert "tests/worker/test_greedy_identity.py" not in files  # needs the default model
    assert "tests/commands/test_serve.py" not in files  # starts processes
    assert not [name for name in files if name.startswith("tests/system/")]


def test_longest_test_files_exist() -> None:
    assert [name for name in LONGEST if not list((ROOT / "tests").rglob(name))] == []


def test_installed_wheel_contains_the_default_config(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    shutil.unpack_archive(wheel, target, "zip")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "models", "--json"],
        cwd=elsewhere,
        env=environment(
            PYTHONPATH=str(target), XDG_DATA_HOME=str(tmp_path / "data"), LOCALAPPDATA=str(tmp_path / "data")
        ),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    (row,) = json.loads(done.stdout)
    assert row["name"] == "smollm2-135m" and row["state"] == "missing"
    if sys.platform != "darwin":
        assert Path(row["path"]) == tmp_path / "data" / "npu-gateway" / "models" / "smollm2-135m"


class TestWords:
    @pytest.mark.parametrize("word", ["t" + "old", "c" + "ompany", "w" + "hoever", "s" + "uch"])
    def test_word_check_reports_line_and_plain_words(self, word: str) -> None:
        ((line, found, plain),) = hits(f"first line\nthe {word} one")
        assert (line, found) == (2, word) and plain

    @pytest.mark.parametrize("text", ["in place", "take place", "such as", "outside", "understand", "placeholder"])
    def test_word_check_accepts_standard_terms(self, text: str) -> None:
        assert list(hits(text)) == []

    def test_word_check_reads_code_and_pages_but_no_lock_file(self) -> None:
        names = files([])
        assert {"README.md", "pyproject.toml", ".ci/run", "gateway/app.py"} <= set(names)
        assert not [name for name in names if name.endswith(".lock") or "corpus/" in name]
