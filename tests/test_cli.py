"""`npu-gateway`: exit codes, one line for each failure, and no heavy import at the start."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import __version__, cli
from gateway.errors import BundleError, ConfigError
from tests.support.processes import environment, gateway

COMMANDS = ("serve", "chat", "bench", "doctor", "models", "build")


def test_version_option_prints_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"npu-gateway {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_option_names_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"npu-gateway {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["serv"], ["serve", "--port", "x"], ["serve", "--provider", "gpu"]])
def test_wrong_command_line_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "npu-gateway" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage", "words"),
    [
        (["hlep"], "npu-gateway [-h]", "there is no command 'hlep'; did you mean 'help'? `npu-gateway help` lists"),
        (["pul", "x"], "npu-gateway [-h]", "there is no command 'pul'; did you mean 'pull'?"),
        (["x\x1b[2J"], "npu-gateway [-h]", "there is no command 'x\\x1b[2J'. `npu-gateway help` lists the commands."),
        (["serve", "--prot", "8401"], "npu-gateway serve", "unknown argument '--prot'; did you mean '--port'?"),
        (["bench", "--modle=x"], "npu-gateway bench", "unknown argument '--modle=x'; did you mean '--model'?"),
        (
            ["serve", "--model", "x"],
            "npu-gateway serve",
            "'--model'; write it without --model: `npu-gateway serve NAME`",
        ),
        (["doctor", "--modl"], "npu-gateway doctor", "unknown argument '--modl'\n"),
        (["serve", "a", "b"], "npu-gateway serve", "unknown argument 'b'\n"),
        (["--config", "x.toml", "serve"], "npu-gateway [-h]", "write `npu-gateway COMMAND --config`"),
        (["bench", "--runs", "two"], "npu-gateway bench", "argument --runs: 'two' is not a whole number"),
        (["help", "serv"], "npu-gateway [-h]", "there is no command 'serv'; did you mean 'serve'?"),
    ],
)
def test_mistyped_word_gets_the_nearest_one_and_the_usage_of_its_command(
    arguments: list[str], usage: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    text = capsys.readouterr().err
    assert ended.value.code == 2 and text.startswith(f"usage: {usage}") and words in text


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["-V"], f"npu-gateway {__version__}\n"),
        (["version"], f"npu-gateway {__version__}\n"),
        (["help"], "usage: npu-gateway [-h]"),
        (["help", "pull"], "usage: npu-gateway pull"),
        (["help", "config", "init"], "usage: npu-gateway config init"),
    ],
)
def test_help_and_version_are_commands_too(
    arguments: list[str], start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(start)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (ConfigError("config.toml: x: unknown key"), 2, "npu-gateway: config.toml: x: unknown key\n"),
        (BundleError("The bundle is broken."), 1, "npu-gateway: The bundle is broken.\n"),
        (ConfigError("\x1b[2J\n: unknown key"), 2, "npu-gateway: \\x1b[2J\\n: unknown key\n"),
        (KeyboardInterrupt(), 130, "npu-gateway: interrupted\n"),
    ],
)
def test_expected_error_prints_one_line(
    raised: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr("gateway.commands.models.table.run", run)
    assert cli.main(["models"]) == code
    assert capsys.readouterr().err == line


def test_config_mistake_exits_2_from_every_command(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[sever]\nport = 1\n[models.a]\n", encoding="utf-8")
    for command in ("serve", "chat", "bench", "models"):
        done = gateway(command, cwd=tmp_path)
        expected = "npu-gateway: config.toml: sever: unknown key; did you mean 'server'?\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_help_of_every_command_loads_no_heavy_library() -> None:
    heavy = ("onnxruntime", "numpy", "litestar", "uvicorn", "openai", "rich", "tokenizers", "psutil", "multiprocessing")
    code = f"""
import contextlib, io, sys
from gateway import cli
from gateway.commands.completion.candidates import candidates
for command in [text for text, _ in candidates(cli.make_parser(), [], "") if text not in ("help", "version")]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        cli.main([command, "--help"])
    assert shown.getvalue().startswith("usage: npu-gateway " + command), command
    print(command, [name for name in {heavy} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    lines = done.stdout.splitlines()
    assert len(lines) > 10 and [line for line in lines if not line.endswith(" []")] == []


def test_help_lists_every_command_in_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["help"])
    shown = capsys.readouterr().out
    groups = re.findall(r"^([a-z ]+):$", shown, re.MULTILINE)
    assert groups[:3] == ["get a model", "serve", "use"]
    listed = re.findall(r"^  (\w+) ", shown, re.MULTILINE)
    assert sorted(listed) == sorted(set(listed)) and {"pull", "list", "rm", "chat", "config"} <= set(listed)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("run", "use `npu-gateway serve` or `npu-gateway chat`."),
        ("ls", "use `npu-gateway list`"),
        ("show", "use `npu-gateway models` or `npu-gateway check`."),
        ("create", "use `npu-gateway build` or `npu-gateway config`."),
        ("start", "use `npu-gateway serve`."),
        ("status", "`npu-gateway doctor`."),
    ],
)
def test_command_of_another_program_gets_ours(word: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([word])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_closed_output_pipe_exits_1_without_message(tmp_path: Path) -> None:
    models = "".join(f'[models.m{n}]\nengine = "scripted"\n' for n in range(2000))
    (tmp_path / "config.toml").write_text(models, encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "models", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1
