"""Runs the commands, code and configuration of README.md and docs/ against a real gateway, and compares the output.

A ```text block after commands or code is their output. `...` in it matches any text. Port 8000 is replaced by the port
of the gateway of this test, which runs in place of `python scripts/serve.py`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.cli import make_parser
from gateway.config.file import load_config
from tests.support.processes import PATIENCE_S, ROOT, Serving, environment, serving

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CLIENTS = sorted((ROOT / "docs" / "clients").glob("*.md"))  # tests/commands/launch/test_command.py has their ```text
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Commands that another test runs, or that this test must not run.
ELSEWHERE = {
    "python scripts/serve.py qwen3-4b": "tests/commands/models/test_pull.py",
    "python scripts/test.py": "tests/system/test_scripts.py",
    "python scripts/test.py --fast": "tests/system/test_scripts.py",
    "python scripts/check.py": "tests/system/test_scripts.py",
    **dict.fromkeys(
        (
            "python benchmarks/peers.py --install --size 1b --weights q4_0 --write docs/benchmarks.md",
            "python benchmarks/peers.py --size 1b --weights q4_k_m --longest 0 --write docs/benchmarks.md",
            "python benchmarks/peers.py --size 3b --weights q4_0 --longest 0 --write docs/benchmarks.md",
            "python benchmarks/peers.py --size 135m --longest 0 --write docs/benchmarks.md",
            "python benchmarks/speculation.py --write docs/benchmarks.md",
            "python benchmarks/start.py --model models/bench/1b-q4_0 --clone OLDER --gguf models/bench/1b-q4_0.gguf "
            "--write docs/benchmarks.md",
        ),
        "tests/system/test_benchmarks.py",
    ),
    "python benchmarks/threads.py --write docs/benchmarks.md": "tests/system/test_benchmarks.py",
    "python benchmarks/overhead.py --write docs/benchmarks.md": "tests/system/test_benchmarks.py",
    "python benchmarks/prediction.py --write docs/benchmarks.md": "tests/system/test_benchmarks.py",
    "python benchmarks/forecast.py --write docs/benchmarks.md": "tests/system/test_benchmarks.py",
    "python benchmarks/host_cost.py --write docs/benchmarks.md": "tests/system/test_benchmarks.py",
    "python benchmarks/npu_model.py --write docs/benchmarks.md": "tests/system/test_benchmarks.py",
    "python benchmarks/memory_budget.py --write docs/benchmarks.md": "tests/system/test_benchmarks.py",
    "python benchmarks/proxy.py --litellm PROGRAM --write docs/benchmarks.md": "tests/system/test_benchmarks.py",
    "python benchmarks/scale.py --write docs/scale.md": "tests/system/test_scale.py",
}


class Block(NamedTuple):
    language: str
    text: str
    expected: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    listed = []
    for match, following in zip(found, [*found, None][1:], strict=True):
        shows_output = following is not None and following[1] == "text" and match[1] in ("sh", "python")
        listed.append(Block(match[1], match[2], following[2] if shows_output and following else None))
    return listed


def all_blocks(*languages: str, pages: list[Path] = PAGES) -> list[tuple[Path, Block]]:
    return [(page, block) for page in pages for block in blocks(page) if block.language in languages]


def commands(page: Path) -> list[str]:
    """Each `npu-gateway COMMAND ...` of a page, in the text and in blocks, without pipes and comments.

    Not the plain text of a table, whose lines begin with `|`.
    """
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"`npu-gateway ([^`]+)`|^(?:\$ |[^|`\n]+\| )?npu-gateway ([a-z].*)$", text, re.MULTILINE)
    lines = [re.split(r" [#<>|]|\\\\?\|", inline or line)[0].replace("\n", " ") for inline, line in found]
    return [line for line in dict.fromkeys(lines) if not line.startswith(("COMMAND", "help", "is "))]


class Gateway(NamedTuple):
    running: Serving
    greeting: str
    port: str

    def here(self, text: str) -> str:
        return text.replace(":8000", f":{self.port}")


@pytest.fixture(scope="module")
def gateway(smollm2: Path) -> Iterator[Gateway]:
    """The gateway that the first command of the README starts, with the repository's config.toml."""
    assert smollm2.is_dir()
    with serving("--port", 0, cwd=ROOT) as running:
        greeting = running.read_greeting()
        found = re.search(r"127\.0\.0\.1:(\d+)/v1", greeting)
        assert found, running.process.stderr.read() if running.process.stderr else ""
        yield Gateway(running, greeting, found[1])


def run(command: list[str], port: str) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(NPU_GATEWAY_SERVER_PORT=port),
        input="",
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S * 5,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def printed_by(line: str, gateway: Gateway) -> str | None:
    """The output of one command of a ```sh block. None if another test runs it."""
    if line in ELSEWHERE:
        assert (ROOT / ELSEWHERE[line]).is_file() and (ROOT / line.split()[1]).is_file()
        return None
    if line == "python scripts/serve.py":
        return gateway.greeting
    program, *arguments = shlex.split(line)
    assert program in ("npu-gateway", "curl"), f"{program}: this test cannot run it"
    if program == "npu-gateway":
        return run([sys.executable, "-m", "gateway", *arguments], gateway.port)
    return run([program, *map(gateway.here, arguments)], gateway.port)


def assert_like(printed: str, expected: str) -> None:
    """Compare except for whitespace. `...` matches any text."""
    pieces = [r"\s+".join(map(re.escape, piece.split())) for piece in expected.split("...")]
    assert re.fullmatch(r"\s*" + r".*?".join(rf"\s*{piece}\s*" for piece in pieces), printed, re.DOTALL), printed


@pytest.mark.parametrize(("page", "block"), all_blocks("sh"), ids=lambda value: getattr(value, "name", None))
def test_commands_print_the_shown_output(page: Path, block: Block, gateway: Gateway) -> None:
    printed = [printed_by(line, gateway) for line in block.text.splitlines() if line]
    if block.expected is not None and None not in printed:
        assert_like("".join(map(str, printed)), gateway.here(block.expected))


@pytest.mark.parametrize(("page", "block"), all_blocks("python"), ids=lambda value: getattr(value, "name", None))
def test_code_prints_the_shown_output(page: Path, block: Block, gateway: Gateway) -> None:
    printed = run([sys.executable, "-c", gateway.here(block.text)], gateway.port)
    if block.expected is not None:
        assert_like(printed, gateway.here(block.expected))


@pytest.mark.parametrize(
    ("page", "block"), all_blocks("toml", pages=PAGES + CLIENTS), ids=lambda value: getattr(value, "name", None)
)
def test_configuration_is_valid(page: Path, block: Block, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(block.text, encoding="utf-8")
    load_config(file, {})


def test_commands_of_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Their options and values are right. One word is only the name of a command."""
    parser = make_parser()
    for name, line in [(page.name, line) for page in PAGES + CLIENTS for line in commands(page)]:
        words = shlex.split(line.partition(" -- ")[0].replace("CLIENT", "claude"))
        try:
            parser.parse_args(words if len(words) > 1 else [*words, "--help"])
        except SystemExit as ended:
            assert not ended.code, f"{name}: {line}: {capsys.readouterr().err}"


def test_every_block_has_a_known_language() -> None:
    known = {"sh", "python", "toml", "text", "yaml"}  # tests/monitoring/test_metrics_page.py parses the YAML
    assert {block.language for page in PAGES for block in blocks(page)} <= known


def test_environment_variables_of_the_readme_are_read(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    variables = dict(re.findall(r"(NPU_GATEWAY_[A-Z0-9_]+)=(\w+)", text)) | {"NPU_GATEWAY_API_KEY": "k"}
    file = tmp_path / "config.toml"
    file.write_text(next(block.text for block in blocks(ROOT / "README.md") if block.language == "toml"), "utf-8")
    config = load_config(file, variables)
    assert (config.server.port, config.models["big"].threads) == (9000, 2)


def test_folder_table_names_every_top_level_unit() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Folders")[2].partition("\n## ")[0]
    shown = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`([\w./]+)`", row.split("|")[1] if "|" in row else "")
    }
    modules = {path.name for path in (ROOT / "gateway").glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.name}/" for path in (ROOT / "gateway").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert modules | folders <= shown
    for name in shown:
        assert (ROOT / "gateway" / name).exists(), name


def test_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    assert [name for name in pages if f"({name})" not in index] == []


@pytest.mark.parametrize("page", [ROOT / "CHANGELOG.md", *PAGES, *CLIENTS], ids=lambda page: page.name)
def test_links_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
