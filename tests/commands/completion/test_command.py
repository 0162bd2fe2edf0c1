"""The scripts: that of bash runs in bash, all name the words that they send."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import cli
from gateway.commands.completion.scripts import SCRIPTS
from tests.support.processes import PATIENCE_S, environment

BASH = shutil.which("bash")
#: Prints the candidates of each line, as bash gets them when the Tab key is pressed.
DRIVER = """
eval "$(npu-gateway completion bash)"
complete -p npu-gateway
for line in "npu-gateway benc" "npu-gateway chat --model gp" \\
    "npu-gateway chat --model=gp" "npu-gateway serve --provider "
do
    COMP_LINE=$line COMP_POINT=${#line}
    _npu_gateway
    echo "$line: ${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(BASH is None or sys.platform == "win32", reason="bash of this system is necessary")
def test_bash_completes_commands_options_values_and_models(folder: Path) -> None:
    program = folder / "npu-gateway"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    variables = environment()
    variables["PATH"] = f"{folder}:{variables['PATH']}"
    command = [str(BASH), "--norc", "-c", DRIVER]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, encoding="utf-8", timeout=PATIENCE_S)
    assert done.stderr == ""
    registered, *lines = done.stdout.splitlines()
    assert registered == "complete -o bashdefault -o default -F _npu_gateway npu-gateway"
    assert lines == [
        "npu-gateway benc: bench",
        "npu-gateway chat --model gp: gpt-4o-mini",
        "npu-gateway chat --model=gp: gpt-4o-mini",  # bash replaces only what follows the `=`
        "npu-gateway serve --provider : auto cpu qnn",
    ]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_is_printed_with_its_installation(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    head = "\n".join(script.splitlines()[:4])
    assert f"npu-gateway completion {shell}" in head and head.startswith("#")
    assert "completion --words" in script and '":' in script


def test_candidates_are_printed_for_any_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "--words", "launch", "--help", "--", "-V", ":x"]) == 0
    assert cli.main(["completion", "--words"]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["completion", "--words", ":versio"]) == 0
    assert capsys.readouterr().out == "version\tprint the version\n"
