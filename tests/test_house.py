"""The structure rules, read from the source. `scripts/check.py` runs the linters, the type checks and the word list.

Layout: the number of units at the top, files in a folder, lines in a file, lines in a function, names of folders.
Imports: one direction, no cycle, each library only where it belongs.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gateway"

#: The layers, lowest first; docs/architecture.md has the same list. A file imports only from layers before its own,
#: from units before its own in the same layer, and from its own unit.
_LAYERS = (
    "errors activity",
    "sandbox sampling embedding generation state monitoring child",
    "text dialects prompts bundles qnn",
    "worker",
    "config",
    "engines",
    "lanes",
    "server",
    "routes",
    "app",
    "builder",
    "pull",
    "commands cli",
)
ORDER = [name for layer in _LAYERS for name in layer.split()]

#: library -> the folders and files that may import it
LIBRARY_USERS = {
    "onnxruntime": {"worker", "qnn", "builder"},
    "onnxruntime_qnn": {"worker/genie", "qnn"},
    "llguidance": {"worker"},
    "numpy": {"worker", "qnn", "builder"},
    "onnx": {"bundles", "worker", "qnn", "builder"},
    "opentelemetry": {"monitoring/traces.py"},
    "litestar": {"app.py", "routes", "server"},
    "sse_starlette": {"server/sse.py"},  # importing it patches uvicorn's exit handler
    "httpcore": {"engines/upstream"},
    "pg8000": {"state/postgres.py"},
    "sqlite3": {"state/sqlite.py"},
    "openai": {"commands/client.py", "commands/chat", "commands/bench", "commands/verify"},
    "tokenizers": {"text", "builder"},
    "jinja2": {"text"},
    "tomllib": {"config/toml_file.py"},
    "tomlkit": {"pull", "commands/launch"},
    "httpx": {"builder/package_index.py", "pull", "commands/running/api.py", "commands/verify/peer.py"},
    "huggingface_hub": {"pull", "builder"},
    "ray": {"commands/ray"},
}

#: Start units -> the libraries and units that they must not import, directly or through other modules.
FORBIDDEN = {
    "gateway_process": (
        ("engines", "lanes", "routes", "server", "app"),
        ("onnxruntime", "onnxruntime_qnn", "llguidance", "onnx", "numpy", "tokenizers", "jinja2"),
    ),
    "prompt_process": (("prompts",), ("asyncio", "litestar", "psutil", "gateway.engines", "gateway.worker")),
    "worker_process": (("worker",), ("asyncio", "litestar", "gateway.dialects", "gateway.text", "gateway.engines")),
    "serving": (("engines", "lanes", "routes", "server", "app", "worker"), ("gateway.builder",)),
}
#: The functions of this module are what a child process runs. Their imports are not those of the gateway process.
ENTRY = "gateway.worker.entry"

MAX_UNITS = 26  # folders and modules directly in gateway/
MAX_FILES = 15  # in one folder, with __init__.py
MAX_LINES = 300  # of one file
MEDIAN_FUNCTION = 10  # lines; the median is below it


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


def relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def unit(file: Path) -> str:
    """The file's folder directly in gateway/, or the module itself."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every imported name, also inside functions."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "(relative)"


def module_graph() -> dict[str, set[str]]:
    """Each module of the package and what it imports."""
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in sources()}
    return {
        module: {name if name in files else name.rpartition(".")[0] for name in imported(tree(file))}
        for module, file in files.items()
    }


def reached(start: Sequence[str]) -> dict[str, str]:
    """Each module and library that the start units import, directly or not -> the chain of imports to it."""
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in sources()}
    chains = {module: module for module, file in files.items() if unit(file) in start}
    queue = list(chains)
    for module in queue:
        if module not in files:
            continue
        source: ast.AST = tree(files[module])
        if module == ENTRY:
            source = ast.Module([node for node in tree(files[module]).body if not isinstance(node, ast.FunctionDef)])
        for name in imported(source):
            parent = name.rpartition(".")[0]
            target = name if name in files else parent if parent in files else name
            if target not in chains:
                chains[target] = f"{chains[module]} > {target}"
                queue.append(target)
    return chains


def imports_of_later_layers(file: Path) -> Iterator[str]:
    """Names that the file imports from its own layer after its unit, or from a later layer. Also relative imports."""
    own = unit(file)
    for name in imported(tree(file)) if own in ORDER else ():
        if name == "(relative)":
            yield name
        elif name.startswith("gateway.") and name != "gateway.__version__":
            other = name.split(".")[1]
            if other != own and ORDER.index(other) > ORDER.index(own):
                yield name


class TestLayout:
    def test_package_has_few_units_at_the_top(self) -> None:
        units = {unit(file) for file in sources()} - {"__init__", "__main__"}
        assert len(units) <= MAX_UNITS, sorted(units)

    def test_each_folder_has_few_files(self) -> None:
        folders = {file.parent for file in sources()}
        sizes = {relative(folder): len(list(folder.glob("*.py"))) for folder in folders}
        assert {name: size for name, size in sizes.items() if size > MAX_FILES} == {}

    def test_each_file_is_short(self) -> None:
        lengths = {relative(file): len(file.read_text(encoding="utf-8").splitlines()) for file in sources()}
        assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}

    def test_median_function_is_short(self) -> None:
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for file in sources() for node in ast.walk(tree(file)) if isinstance(node, functions)]
        lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in found]
        assert statistics.median(lengths) < MEDIAN_FUNCTION

    def test_no_folder_has_the_name_of_a_library(self) -> None:
        lock = (ROOT / "requirements-test.lock").read_text(encoding="utf-8")
        locked = {name.replace("-", "_") for name in re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE)}
        folders = {folder for file in sources() for folder in file.relative_to(PACKAGE).parts[:-1]}
        assert folders & (locked | sys.stdlib_module_names) == set()


class TestImports:
    def test_architecture_page_shows_the_same_order(self) -> None:
        page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
        assert "\n".join("  ".join(layer.split()) for layer in _LAYERS) in page

    def test_every_unit_has_a_layer(self) -> None:
        assert {unit(file) for file in sources()} - {"__init__", "__main__"} <= set(ORDER)

    def test_imports_point_one_way(self) -> None:
        found = [f"{relative(file)} imports {name}" for file in sources() for name in imports_of_later_layers(file)]
        assert not found, "\n".join(found)

    def test_no_import_cycle(self) -> None:
        TopologicalSorter(module_graph()).prepare()  # raises CycleError, which names the modules

    @pytest.mark.parametrize(("start", "forbidden"), FORBIDDEN.values(), ids=FORBIDDEN)
    def test_process_never_reaches(self, start: Sequence[str], forbidden: Sequence[str]) -> None:
        chains = reached(start)
        assert len(chains) > len(start)
        found = [
            chain for name, chain in chains.items() if any(f"{name}.".startswith(f"{each}.") for each in forbidden)
        ]
        assert not found, "\n".join(found)

    def test_gateway_process_imports_only_entry_and_frames_of_worker(self) -> None:
        start, _ = FORBIDDEN["gateway_process"]
        assert {name for name in reached(start) if name.startswith("gateway.worker")} == {
            "gateway.worker.entry",
            "gateway.worker.frames",
        }

    def test_library_is_imported_only_by_its_users(self) -> None:
        found = [
            f"{path} imports {name}"
            for file in sources()
            for path, name in ((relative(file), name) for name in imported(tree(file)))
            if (users := LIBRARY_USERS.get(name.split(".")[0])) is not None
            and not any(f"{path}/".startswith(f"{user}/") for user in users)
        ]
        assert not found, "\n".join(found)

    def test_environment_is_read_only_by_the_config_loader(self) -> None:
        readers = {"config/file.py", "config/find.py", "config/package_index.py", "bundles/disk.py", "__init__.py"}
        readers |= {"worker/decoders/row_record.py"}  # variables of ONNX Runtime, which select its kernels
        found = {relative(file) for file in sources() if "os.environ" in file.read_text(encoding="utf-8")}
        assert {path for path in found if "os.environ" in ast.unparse(tree(PACKAGE / path))} == readers


def calls(file: Path) -> Iterator[tuple[str, str]]:
    """(function around it, name of what is called or used as a value) for each name in the file."""
    for function in ast.walk(tree(file)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from ((function.name, node.id) for node in ast.walk(function) if isinstance(node, ast.Name))


class TestBlame:
    """What counts against a device can only come from a device call (gateway/activity.py)."""

    def test_device_failures_are_made_around_device_calls_only(self) -> None:
        users = {(relative(file), where) for file in sources() for where, name in calls(file) if name == "DeviceFailed"}
        assert users == {
            ("activity.py", "__exit__"),  # of DeviceCall: asks whether it is one already
            ("activity.py", "_device_failed"),  # what a device call raised
            ("activity.py", "check"),  # what a device call returned
            ("engines/local/supervisor.py", "_watch_until_lost"),  # a device call ended the worker
            ("engines/local/supervisor.py", "_receive"),  # the worker's own report, by its class
            ("lanes/breaker.py", "outcome"),  # asks whether it is one
        }

    def test_errors_are_made_by_name_only_from_a_workers_frames(self) -> None:
        users = {relative(file) for file in sources() for _, name in calls(file) if name == "error_class"}
        assert users == {
            "engines/encoder/request.py",
            "engines/local/events.py",
            "engines/local/supervisor.py",
            "engines/scripted/script.py",  # the user's own script of faults
            "config/check.py",  # its names
        }

    def test_device_calls_are_made_in_few_places(self) -> None:
        users = {
            (relative(file), function.name)
            for file in sources()
            for function in ast.walk(tree(file))
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute) and node.attr == "device_call"
        }
        assert users == {
            ("worker/token_loop.py", "_timed"),
            ("worker/drafting/model.py", "_call"),
            ("worker/encoder/main.py", "_run"),
            ("worker/genie/library.py", "query"),
            ("worker/genie/library.py", "set_max_tokens"),
            ("worker/genie/library.py", "reset"),
            ("engines/scripted/engine.py", "call"),
            ("engines/scripted/engine.py", "_raise"),
        }

    def test_only_one_function_makes_a_failure_for_the_breaker(self) -> None:
        """`outcome` of breaker.py: no other code in `lanes` settles a permit as failed."""
        for file in sources():
            if unit(file) == "lanes":
                assert 'settle("failed")' not in file.read_text(encoding="utf-8")


UNFINISHED = re.compile(
    "not implemented|raise NotImpl|TODO|FIXME|XXX|(?<!:)placeholder(?![:=])|for now|stub",  # HTML has `placeholder=`
    re.IGNORECASE,
)
FOREIGN = re.compile(
    r"(^|[^.a-z])/(wo" r"rk|fa" r"rm)/|https?://[a-z.]*(py" r"pi|python" r"hosted|npm" r"js|deb" r"ian)\."
)


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def lines_with(pattern: re.Pattern[str], file: Path) -> list[int]:
    text = file.read_bytes().decode(errors="replace")
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


class TestText:
    def test_nothing_is_marked_unfinished(self) -> None:
        found = [
            f"{file}:{number}"
            for file in tracked("gateway", "scripts", ":!gateway/web/vendor")  # the text of other projects
            for number in lines_with(UNFINISHED, file)
        ]
        assert not found

    def test_no_path_or_host_of_a_developers_machine(self) -> None:
        found = [f"{file}:{number}" for file in tracked() for number in lines_with(FOREIGN, file)]
        assert not found

    def test_package_project_and_changelog_have_the_same_version(self) -> None:
        from gateway import __version__

        assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
