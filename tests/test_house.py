"""The house's rules, read off the source: imports point one way, libraries keep to their rooms, linters are content."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gateway"

#: docs/architecture.md draws the same picture. A file imports only what stands before it, or its own family.
_SHELVES = (
    "errors common_prefix",
    "generation config_value config config_file metrics logs child",
    "text dialects bundles qnn",
    "worker",
    "engines",
    "lanes",
    "server",
    "routes",
    "app",
    "builder",
    "commands cli",
)
ORDER = [name for shelf in _SHELVES for name in shelf.split()]

ROOMS = {
    "onnxruntime": {"worker", "qnn", "builder", "commands/doctor.py"},
    "onnxruntime_qnn": {"worker", "qnn", "commands/doctor.py"},
    "llguidance": {"worker"},
    "numpy": {"worker", "qnn", "builder", "commands/doctor.py"},
    "onnx": {"bundles", "worker", "qnn", "builder"},
    "litestar": {"app.py", "routes", "server"},
    "sse_starlette": {"server/sse.py"},  # importing it patches uvicorn's exit handler
    "openai": {"engines/upstream", "commands/chat.py"},
    "tomllib": {"config_file.py"},
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_the_picture_shows_the_same_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "\n".join("  ".join(shelf.split()) for shelf in _SHELVES) in page


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "(relative)"


def part(file: Path) -> str:
    """The layer's name for a file: its folder's, or its own."""
    inside = file.relative_to(PACKAGE).parts
    return inside[0].removesuffix(".py")


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(file: Path) -> None:
    mine = part(file)
    if mine in ("__init__", "__main__"):
        return
    assert mine in ORDER, f"{mine} stands nowhere in the house"
    for name in imported(ast.parse(file.read_text(encoding="utf-8"))):
        if not name.startswith("gateway.") or name == "gateway.__version__":
            continue
        other = name.split(".")[1]
        assert other == mine or ORDER.index(other) < ORDER.index(mine), f"{file.name} imports {name}, which comes later"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Within a family too, and inside functions: each file can be read after those that it imports."""
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in sources()}
    graph = {
        module: {name if name in files else name.rpartition(".")[0] for name in imported(ast.parse(file.read_bytes()))}
        for module, file in files.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_libraries_keep_to_their_rooms(file: Path) -> None:
    place = file.relative_to(PACKAGE).as_posix()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for name in imported(tree):
        rooms = ROOMS.get(name.split(".")[0])
        assert rooms is None or any(f"{place}/".startswith(f"{room}/") for room in rooms), f"{place} imports {name}"
    if place not in ("config_file.py", "__init__.py"):
        assert "os.environ" not in ast.unparse(tree), f"{place} reads the environment by itself"


@pytest.mark.parametrize(
    "command",
    [
        "ruff format --check",
        "ruff check",
        "mypy --platform linux",
        "mypy --platform win32",
    ],
)
def test_the_tools_are_content(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


UNFINISHED = re.compile("not implemented|raise NotImpl|TODO|FIXME|XXX|placeholder|for now|stub", re.IGNORECASE)
FOREIGN = re.compile(
    r"(^|[^.a-z])/(wo" r"rk|fa" r"rm)/|https?://[a-z.]*(py" r"pi|python" r"hosted|npm" r"js|deb" r"ian)\."
)


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_nothing_is_unfinished() -> None:
    found = [f"{file}:{number}" for file in tracked("gateway", "scripts") for number in lines_with(UNFINISHED, file)]
    assert not found


def test_no_path_or_host_of_somebodys_machine() -> None:
    found = [f"{file}:{number}" for file in tracked() for number in lines_with(FOREIGN, file)]
    assert not found


def lines_with(pattern: re.Pattern[str], file: Path) -> list[int]:
    text = file.read_bytes().decode(errors="replace")
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def test_versions_agree() -> None:
    from gateway import __version__

    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
