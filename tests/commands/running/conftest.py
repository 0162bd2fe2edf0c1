from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.commands.running.run_file import RunFile, announced
from tests.support.server import Running, config_of, scripted, serving

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder, and a current folder without a configuration."""
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        output, errors = capsys.readouterr()
        return code, output, errors

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = {"paris": scripted("It is Paris."), "rome": scripted("It is Rome.", load_error="no file")}
    with serving(config_of(models)) as running:
        yield running


@pytest.fixture
def found(server: Running, data: Path) -> Iterator[RunFile]:
    """The gateway of `server`, with a run file. Its process is this one, so nothing may stop it."""
    run = RunFile(url=server.url, host="127.0.0.1", port=server.port)
    with announced(run):
        yield run
