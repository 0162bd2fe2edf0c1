"""Compiles the tiny decoder for the emulated NPU. Run it in a child process: the emulator can crash its process.

python -m tests.support.npu.htp_compile FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx

from tests.support.npu.tiny_htp_decoder import PROMPT_WIDTH, Run, TinyDecoder
from tests.support.npu.tiny_htp_graph import build_graph
from tests.support.paths import ROOT

HTP_OPTIONS = {"htp_performance_mode": "burst", "soc_model": "60", "htp_arch": "73"}


def open_htp_session(path: Path, *, compile_to: Path | None = None) -> Run:
    """Open a graph or a compiled context on the emulated HTP without CPU fallback. Optionally write its context."""
    import onnxruntime
    import onnxruntime_qnn

    name = "QNNExecutionProvider"
    if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    device = next(device for device in onnxruntime.get_ep_devices() if device.ep_name == name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if compile_to:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(compile_to))
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    options.add_provider_for_devices([device], HTP_OPTIONS | backend)
    opened = onnxruntime.InferenceSession(str(path), options)
    return lambda feeds: opened.run(["logits", "past_key_0_out", "past_value_0_out"], dict(feeds))


def graph_name(width: int) -> str:
    return "prompt" if width > 1 else "token"


def build(folder: Path, decoder: TinyDecoder) -> None:
    """Write {prompt,token}.onnx, {prompt,token}_ctx.onnx and their context binaries into `folder`."""
    for width in (PROMPT_WIDTH, 1):
        source = folder / f"{graph_name(width)}.onnx"
        onnx.save(build_graph(decoder, width), str(source))
        open_htp_session(source, compile_to=source.with_name(f"{source.stem}_ctx.onnx"))


def context_binaries(folder: Path) -> list[Path]:
    """The context binaries of `folder`, prompt graph first."""
    return sorted(folder.glob("*_ctx_qnn.bin"))


def compile_in_child(folder: Path) -> list[Path]:
    """`build` in a child process. Returns: the context binaries, prompt graph first."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.support.npu.htp_compile", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and len(context_binaries(folder)) == 2, done.stdout + done.stderr
    return context_binaries(folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]), TinyDecoder())
