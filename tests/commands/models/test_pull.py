"""`npu-gateway pull`, `list`, `rm` and `serve NAME` as a user runs them."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from gateway import cli
from gateway.bundles.hashes import check_hashes
from gateway.commands.models import pull as command
from gateway.config.file import load_config
from tests.support.model_server import serve_models
from tests.support.processes import PATIENCE_S, environment, serving
from tests.support.server import wait_until
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf


@pytest.fixture
def url(tiny: Path) -> Iterator[str]:
    """The address of a zip with a bundle."""
    with serve_models() as server:
        yield server.add("tiny-genie-w4a16.zip", zip_of(tiny))


def zip_of(bundle: Path) -> bytes:
    path = bundle.parent / "packed.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(bundle.iterdir()):
            if file.is_file() and file.name[0] != "." and file.name != "hashes.json":
                opened.write(file, f"inner/{file.name}")
    return path.read_bytes()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("# mine\n[server]\nport = 8123\n", encoding="utf-8")
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_pull_list_and_remove(url: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pull", url) == 0
    printed = capsys.readouterr()
    assert printed.out == "tiny is ready: npu-gateway serve tiny\n"
    lines = printed.err.splitlines()
    assert lines[0] == "npu-gateway: licence of tiny: not stated by the source"
    assert lines[1].startswith("downloading tiny-genie-w4a16.zip (") and lines[2].startswith("unpacking tiny-genie")
    assert lines[3:] == ["computing the hashes of tiny", "npu-gateway: tiny is in config.toml now"]
    assert run("list", "--json") == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["name"], row["state"], row["is_configured"], row["source"]) == ("tiny", "ready", True, url)
    assert run("list") == 0
    assert capsys.readouterr().out.split("\t")[:2] == ["tiny", "ready"]
    assert run("rm", "tiny") == 0
    assert capsys.readouterr().out.splitlines() == [
        "removed [models.tiny] in config.toml",
        f"removed {here / 'models' / 'tiny'}",
    ]
    assert (here / "config.toml").read_text(encoding="utf-8").rstrip() == "# mine\n[server]\nport = 8123"
    assert run("list", "--json") == 0 and json.loads(capsys.readouterr().out) == []


def test_print_changes_no_file(url: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "config.toml").read_bytes()
    assert run("pull", url, "--as", "other", "--print") == 0
    assert tomllib.loads(capsys.readouterr().out) == {"models": {"other": {"path": "other"}}}
    assert (here / "config.toml").read_bytes() == before and (here / "models" / "other").is_dir()


def test_gguf_is_built_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a real build in a child process: no lock stays between the two."""
    with serve_models() as server:
        assert run("pull", server.add("t.gguf", write_tiny_gguf(here / "x.gguf").read_bytes()), "--as", "g") == 0
    assert capsys.readouterr().out == "g is ready: npu-gateway serve g\n"
    assert (here / "models" / "g" / "genai_config.json").is_file()
    assert load_config(here / "config.toml", {}).models["g"].source == str(here / "models" / "g.gguf")  # type: ignore[union-attr]


def test_weights_of_the_hub_are_built_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The builder's own download uses the server in place of the Hub too."""
    folder = write_tiny_folder(here / "weights")
    with serve_models() as server:
        monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", server.url)
        monkeypatch.setenv("HF_HOME", str(here / "hub"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        server.repos["org/Tiny-135M"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        server.cards["org/Tiny-135M"] = {"license": "mit"}
        assert run("pull", "hf:org/Tiny-135M") == 0
    assert "licence of tiny-135m: mit" in capsys.readouterr().err
    assert check_hashes(here / "models" / "tiny-135m") == []
    assert load_config(here / "config.toml", {}).models["tiny-135m"].source == "hf:org/Tiny-135M"  # type: ignore[union-attr]


def test_model_of_the_catalog_by_its_name(
    tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_models() as server:
        monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", server.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
        server.add("data/adh2/models/suggested/llama3.2-3b-8380-qnn2.37.zip", zip_of(tiny))
        assert run("pull", "llama3.2:3b", "--chip", "x-elite") == 0
        errors = capsys.readouterr().err
        assert "licence of llama3.2-3b: llama3.2 https://huggingface.co/" in errors
        assert load_config(here / "config.toml", {}).models.keys() == {"llama3.2-3b"}
        assert run("pull", "qwen3-4b", "--chip", "x-elite") == 1
        errors = capsys.readouterr().err
        assert "'qwen3-4b' is in no list that could be read. AI Hub could not be read" in errors
        assert (
            errors.endswith("Try `npu-gateway catalog --refresh` later, and then a newer npu-gateway.\n")
            and "Did you mean" not in errors
        )


def test_folder_with_a_missing_file_is_not_said_to_be_ready(
    tiny: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny, here / "t", ignore=shutil.ignore_patterns("tokenizer.json", "hashes.json"))
    assert run("pull", str(folder)) == 0
    printed = capsys.readouterr()
    assert printed.out == "t is not complete. Add what is missing, then: npu-gateway serve t\n"
    assert "npu-gateway: missing: " in printed.err and "tokenizer.json" in printed.err


def test_refused_download_is_not_listed_as_interrupted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_models() as server:
        assert run("pull", server.add("gone.zip", b"", status=404)) == 1
    capsys.readouterr()
    assert run("list") == 0 and capsys.readouterr().out == ""


def test_interruption_is_one_line(
    url: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gateway.pull.download._append", interrupt)
    assert run("pull", url) == 130
    assert capsys.readouterr().err.splitlines()[1:] == [
        "npu-gateway: interrupted; the same command continues the download"
    ]


def test_other_spellings_of_the_hub_are_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, right in {
        "org/tiny": "A repository of the Hugging Face Hub is 'hf:org/tiny'.",
        "huggingface.co/org/tiny": "An address is 'https://huggingface.co/org/tiny'.",
        "models/tiny.zip": "There is no file or folder 'models/tiny.zip'.",
    }.items():
        assert run("pull", text) == 2
        assert capsys.readouterr().err.endswith(f"{right}\n")


def test_read_only_configuration_prints_the_table(
    url: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "config.toml").write_text("models = {}\n", encoding="utf-8")  # another table cannot follow this
    assert run("pull", url) == 2
    printed = capsys.readouterr()
    assert tomllib.loads(printed.out) == {"models": {"tiny": {"path": "tiny"}}}
    assert "only a person can change. Add the printed table to it yourself." in printed.err


def test_bar_on_a_terminal_has_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    with command.byte_bars() as report:
        for done in (0, 5_000_000, 10_000_000):
            report("downloading x", done, 10_000_000)
        report("unpacking x", 1_000_000, 2_000_000)
    text = screen.getvalue()
    assert "downloading x" in text and "10.0/10.0 MB" in text and "/s" in text and "unpacking x" in text


@pytest.mark.parametrize("width", [50, 80, 120])
def test_bar_keeps_its_figures_next_to_a_long_name(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=screen, force_terminal=True, width=width))
    name = "qwen3_4b-geniex_qairt-w4a16-qualcomm_snapdragon_x_elite.zip"
    with command.byte_bars() as report:
        for done in (0, 1_900_000_000, 3_100_000_000):
            report(f"downloading {name}", done, 3_100_000_000)
        report("computing the hashes of x", 0, 0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = re.split(r"[\r\n]", text.rstrip())[-1]
    assert last.startswith("downloading ") and "3.1/3.1 GB" in last and "B/s" in last and ":00:00" in last
    assert "?" not in last and "computing" not in text


def test_serve_pulls_and_answers(url: str, here: Path) -> None:
    """The one command: nothing is there, and it ends with an answer. The second start downloads nothing."""
    (here / "config.toml").write_text('[models.other]\nengine = "scripted"\n', encoding="utf-8")
    for model in (url, "tiny"):
        with serving(model, "--port", 0, "--provider", "cpu", cwd=here) as running:
            base = running.read_greeting().split(" on ")[1].split()[0]
            assert "tiny  ready on cpu" in running.output and "other" not in running.output
            body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
            reply = httpx.post(f"{base}/chat/completions", json=body, timeout=60)
            assert reply.status_code == 200 and reply.json()["model"] == "tiny"
    assert set(load_config(here / "config.toml", {}).models) == {"other", "tiny"}


def test_other_spelling_of_an_own_model_needs_no_catalog(
    url: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pull", url, "--as", "qwen3-4b") == 0
    monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", "http://127.0.0.1:1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    capsys.readouterr()
    assert run("pull", "Qwen3-4B-Instruct") == 0
    assert capsys.readouterr().out == "qwen3-4b is ready: npu-gateway serve qwen3-4b\n"
    assert run("rm", "Qwen3_4B") == 2
    assert "There is no model 'Qwen3_4B'. Did you mean qwen3-4b?" in capsys.readouterr().err
    with serving("Qwen3-4B", "--port", 0, "--provider", "cpu", cwd=here) as running:
        running.read_greeting()
        assert "qwen3-4b  ready on cpu" in running.output


def test_empty_name_is_not_this_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pull", "") == 2
    assert "The name of the model is empty." in capsys.readouterr().err


def test_serve_of_an_unknown_model_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.commands.pinned.pin", lambda: None)  # it changes the environment of this process
    assert run("serve", "./nowhere.zip", "--port", "0") == 2
    assert capsys.readouterr().err == "npu-gateway: There is no file or folder './nowhere.zip'.\n"


def test_two_pulls_of_one_model_download_it_once(tiny: Path, here: Path) -> None:
    with serve_models() as server:
        url = server.add("tiny.zip", zip_of(tiny))
        arguments = [sys.executable, "-m", "gateway", "pull", url]
        started = [subprocess.Popen(arguments, cwd=here, env=environment(), stderr=subprocess.PIPE) for _ in range(2)]
        errors = [process.communicate(timeout=PATIENCE_S)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], errors
        assert len(server.sent("tiny.zip")) == 1
    assert (here / "config.toml").read_text(encoding="utf-8").count("[models.") == 1
    assert check_hashes(here / "models" / "tiny") == []


def test_running_gateway_gets_a_pulled_model(url: str, here: Path) -> None:
    (here / "config.toml").write_text('[models.other]\nengine = "scripted"\n', encoding="utf-8")
    with serving("--port", 0, "--provider", "cpu", cwd=here) as running:
        base = running.read_greeting().split(" on ")[1].split()[0]
        assert run("pull", url) == 0
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        with httpx.Client(timeout=60) as client:
            wait_until(
                lambda: client.post(f"{base}/chat/completions", json=body).status_code == 200,
                "the running gateway has no new model",
            )
            names = [model["id"] for model in client.get(f"{base}/models").json()["data"]]
    assert names == ["other", "tiny"]
