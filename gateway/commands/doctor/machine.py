"""This machine: system, Python, libraries and their versions."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata

from gateway import __version__
from gateway.bundles.preflight.stated import version_of
from gateway.commands.doctor.finding import Finding, Symptom
from gateway.commands.doctor.interpreter import Interpreter, this_interpreter

LIBRARIES = ("onnxruntime", "onnxruntime-qnn", "tokenizers", "numpy", "litestar", "uvicorn")
#: Windows 11 24H2, with which Snapdragon X laptops were first sold.
_FIRST_BUILD = 26100
#: The oldest onnxruntime that onnxruntime-qnn 2 can be registered with.
_OLDEST_RUNTIME = (1, 24, 2)
_INSTALL = "python -m pip install --upgrade --force-reinstall npu-gateway"


def machine() -> Iterator[Finding]:
    yield Finding("ok", "npu-gateway", __version__)
    yield Finding("ok", "machine", f"{system()}, {os.cpu_count()} cores")
    yield python(this_interpreter())


def system() -> str:
    if sys.platform == "win32":
        version = sys.getwindowsversion()
        return f"Windows {version.major}, build {version.build}"
    return f"{platform.system()} {platform.release()} on {platform.machine()}"


def windows_build() -> int | None:
    """None: another system."""
    if sys.platform == "win32":
        return sys.getwindowsversion().build
    return None


def build_note(build: int | None, is_arm: bool) -> Iterator[Finding]:
    """A Windows on ARM that is older than the first one for Snapdragon X. `build`: None on other systems."""
    if build is not None and is_arm and build < _FIRST_BUILD:
        detail = f"build {build} is older than Windows 11 24H2 (build {_FIRST_BUILD})"
        yield Finding("note", "Windows", detail, "driver", detail, "install the updates of Windows Update")


def python(found: Interpreter) -> Finding:
    text = f"{found.version}, {found.bits} bit, made for {found.built_for}, {found.path}"
    if not found.problem:
        return Finding("ok", "Python", text)
    because, _, step = found.problem.partition(". ")
    shows: Symptom | None = "not on the NPU" if found.is_emulated else None
    return Finding("bad", "Python", f"{text}: {found.problem}", "interpreter", because, step, shows)


def libraries() -> Iterator[Finding]:
    yield from library_findings({name: _version(name) for name in LIBRARIES})


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def library_findings(versions: Mapping[str, str], npu_expected: bool | None = None) -> Iterator[Finding]:
    """Args:
    versions: library -> its version; "": not installed.
    npu_expected: True on Windows on ARM; None: this machine decides.
    """
    from gateway.qnn.device import may_have_npu

    is_expected = may_have_npu() if npu_expected is None else npu_expected
    for name, version in versions.items():
        if version:
            yield Finding("ok", name, version)
        elif name != "onnxruntime-qnn":
            yield Finding("bad", name, "not installed", "libraries", f"{name} is not installed", f"`{_INSTALL}`")
        elif is_expected:
            because = "onnxruntime-qnn is not installed, and without it the NPU cannot be used"
            yield Finding("bad", name, because, "libraries", because, f"`{_INSTALL}`", "not on the NPU")
        else:
            yield Finding("note", name, "not installed")
    yield from _pair(versions.get("onnxruntime", ""), versions.get("onnxruntime-qnn", ""))


def _pair(runtime: str, qnn: str) -> Iterator[Finding]:
    """onnxruntime-qnn 2 is a plugin of an onnxruntime that is new enough; the older one replaces onnxruntime itself."""
    if not runtime or not qnn:
        return
    if version_of(qnn) < (2,):
        because = f"onnxruntime-qnn {qnn} is too old: it replaces onnxruntime {runtime} by its own"
    elif version_of(runtime) < _OLDEST_RUNTIME:
        oldest = ".".join(map(str, _OLDEST_RUNTIME))
        because = f"onnxruntime {runtime} does not fit onnxruntime-qnn {qnn}, which needs {oldest} or newer"
    else:
        return
    yield Finding("bad", "versions", because, "libraries", because, f"`{_INSTALL}`", "not on the NPU")
