"""A ctypes binding of Genie, Qualcomm's runtime for language models.

The library is part of the onnxruntime-qnn wheel. libGenie.so runs the NPU emulator on x86_64 Linux, Genie.dll the NPU
on Windows. The prototypes are from the vendor's public API pages, and calls of every function confirm them.

1. Import `onnxruntime` before the library is loaded. The other order crashes the process at a later session.
2. The library sometimes ignores a sampler parameter that is set on an existing configuration. It applies a
   configuration that is created from JSON.
3. The library prints the reasons of a refusal and does not return them. So its output is captured while it loads.
4. Call `close` before the process ends. An open dialog then ends the process with a C++ exception.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int32, c_uint32, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from gateway.activity import Activity
from gateway.errors import BundleError, EngineFailed
from gateway.qnn.device import no_library_error
from gateway.qnn.driver_errors import explain
from gateway.worker.genie.captured_output import captured_output

_Handle = c_void_p
_TokenCallback = CFUNCTYPE(None, POINTER(c_uint32), c_uint32, c_int32, c_void_p)

_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "GenieDialogConfig_createFromJson": (c_char_p, POINTER(_Handle)),
    "GenieDialogConfig_free": (_Handle,),
    "GenieDialog_create": (_Handle, POINTER(_Handle)),
    "GenieDialog_tokenQuery": (_Handle, POINTER(c_uint32), c_uint32, c_int32, _TokenCallback, c_void_p),
    "GenieDialog_signal": (_Handle, c_int32),
    "GenieDialog_reset": (_Handle,),
    "GenieDialog_setMaxNumTokens": (_Handle, c_uint32),
    "GenieDialog_setPerformancePolicy": (_Handle, c_int32),
    "GenieDialog_getSampler": (_Handle, POINTER(_Handle)),
    "GenieDialog_free": (_Handle,),
    "GenieSamplerConfig_createFromJson": (c_char_p, POINTER(_Handle)),
    "GenieSampler_applyConfig": (_Handle, _Handle),
    "GenieSamplerConfig_free": (_Handle,),
}

_ABORT = 1  # the action of GenieDialog_signal
_DONE, _ABORTED, _CONTEXT_EXCEEDED = 0, 1, 4
_STATUS_REASONS = {
    2: "a handle is still in use",
    3: "the dialog is paused",
    4: "the context is exceeded",
    -1: "general error",
    -2: "invalid argument",
    -3: "out of memory",
    -4: "invalid configuration",
    -5: "invalid handle",
    -6: "the query failed",
    -7: "malformed JSON",
    -8: "JSON of another shape than it expects",
    -9: "an invalid value in the JSON",
    -10: "generation failed",
    -11: "a handle cannot be had",
    -12: "the configuration cannot be applied",
    -13: "a parameter cannot be set",
    -14: "a handle is bound already",
}


class SentenceCode(IntEnum):
    """How a dialog treats the tokens of a query."""

    COMPLETE = 0  # a whole prompt; Genie adds the begin token if it is missing
    REWIND = 5  # a whole prompt, unchanged; the cache keeps the common prefix with the last prompt


class PerformancePolicy(IntEnum):
    """The speed and the power consumption of the NPU."""

    BURST = 10
    POWER_SAVER = 70


class QueryEnd(IntEnum):
    """The reason why a query ended."""

    DONE = _DONE
    ABORTED = _ABORTED
    CONTEXT_EXCEEDED = _CONTEXT_EXCEEDED


class GenieDialog:
    """One loaded model with the conversation in its cache. Use it from one thread.

    Args:
        config: the content of a config.json with absolute paths.
        activity: shows which device call runs.
    Raises BundleError when this machine has no usable Genie, or when Genie refuses the configuration or the binaries.
    """

    def __init__(self, config: dict[str, Any], activity: Activity | None = None) -> None:
        self._library = _load_library()
        self._activity = activity or Activity()
        self._dialog, self._sampler = _Handle(), _Handle()
        with captured_output() as output:
            status = self._open(json.dumps(config).encode())
        if status != _DONE:
            raise _load_error(status, output.text)

    def query(self, ids: Sequence[int], code: SentenceCode, on_tokens: Callable[[list[int]], bool]) -> QueryEnd:
        """Compute `ids` and generate tokens.

        Args:
            on_tokens: called with each token, end tokens excluded. The query aborts when it returns False.
        Raises DeviceFailed when the device fails. Passes on the exceptions of `on_tokens`: those are not the device's.
        """
        raised: list[BaseException] = []

        def receive(tokens: Any, count: int, sentence: int, _: Any) -> None:
            self._activity.enter("in_call")  # the device works: the query may take minutes, but not a token
            try:
                go_on = not raised and (count == 0 or on_tokens(tokens[:count]))
            except BaseException as error:  # must not pass through the C library
                raised.append(error)
                go_on = False
            if not go_on:
                self._library.GenieDialog_signal(self._dialog, _ABORT)

        array = (c_uint32 * len(ids))(*ids)
        with self._activity.device_call():
            status = self._library.GenieDialog_tokenQuery(
                self._dialog, array, len(ids), code, _TokenCallback(receive), None
            )
            if not raised and status not in list(QueryEnd):
                raise _call_error("GenieDialog_tokenQuery", status)
        if raised:
            raise raised[0]
        return QueryEnd(status)

    def set_max_tokens(self, count: int) -> None:
        """Set the most tokens that each later query generates; 0: only compute the prompt."""
        with self._activity.device_call():
            self._call("GenieDialog_setMaxNumTokens", self._dialog, count)

    def set_sampler(self, *, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        """Set the sampling of later queries. The seed takes effect at the next `reset`.

        Args:
            temperature: greater than 0.
            top_k: 1: greedy; 0: off.
            seed: 0..2^31-1.
        Raises EngineFailed if Genie does not accept these values. The device does not see them.
        """
        settings = {"version": 1, "temp": temperature, "top-k": top_k, "top-p": top_p, "seed": seed}
        config = _Handle()
        self._call("GenieSamplerConfig_createFromJson", json.dumps({"sampler": settings}).encode(), byref(config))
        try:
            self._call("GenieSampler_applyConfig", self._sampler, config)
        finally:
            self._library.GenieSamplerConfig_free(config)

    def reset(self) -> None:
        """Empty the cache and restart the sampler from its seed."""
        with self._activity.device_call():
            self._call("GenieDialog_reset", self._dialog)

    def set_performance(self, policy: PerformancePolicy) -> None:
        """Raises EngineFailed on a device without this setting."""
        self._call("GenieDialog_setPerformancePolicy", self._dialog, policy)

    def close(self) -> None:
        """Release the device and the memory. Idempotent."""
        if self._dialog:
            self._library.GenieDialog_free(self._dialog)
            self._dialog = _Handle()

    def _open(self, config: bytes) -> int:
        library, handle = self._library, _Handle()
        status = library.GenieDialogConfig_createFromJson(config, byref(handle))
        if status != _DONE:
            return int(status)
        try:
            return int(
                library.GenieDialog_create(handle, byref(self._dialog))
                or library.GenieDialog_getSampler(self._dialog, byref(self._sampler))
            )
        finally:
            library.GenieDialogConfig_free(handle)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != _DONE:
            raise _call_error(function, status)


@cache
def _load_library() -> Any:
    """The library with its prototypes. Raises BundleError when it is missing or has another interface."""
    try:
        import onnxruntime  # noqa: F401  before every Qualcomm library
        import onnxruntime_qnn

        folder = Path(onnxruntime_qnn.__file__).parent
        library = _open_library(folder)
    except ImportError as error:
        raise no_library_error() from error
    except OSError as error:
        raise BundleError(f"This machine cannot load Genie: {error}. Install onnxruntime-qnn again.") from error
    missing = [name for name in _PROTOTYPES if not hasattr(library, name)]
    if missing:
        raise BundleError(f"The installed Genie has another version: it has no {', '.join(missing)}.")
    for name, arguments in _PROTOTYPES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int32
    return library


def _open_library(folder: Path) -> Any:
    if sys.platform != "win32":
        return ctypes.CDLL(str(folder / "libGenie.so"))
    # Genie.dll loads QnnHtp.dll by its bare name, and QnnHtp.dll loads the library for the chip. The driver searches
    # ADSP_LIBRARY_PATH for the code that runs on the NPU.
    os.add_dll_directory(str(folder))
    os.putenv("PATH", f"{folder}{os.pathsep}{os.getenv('PATH', '')}")
    os.putenv("ADSP_LIBRARY_PATH", str(folder))
    return ctypes.CDLL(str(folder / "Genie.dll"))


def _call_error(call: str, status: int) -> EngineFailed:
    return EngineFailed(f"{call} failed: {_reason(status)}.")


def _reason(status: int) -> str:
    return _STATUS_REASONS.get(status, f"status {status}")


_ERROR_LINE = re.compile(r"error|fail|can't|at '/|exceed", re.IGNORECASE)
_WARNING_LINE = re.compile(r"\W*warn", re.IGNORECASE)
_FOLDERS = re.compile(r"([A-Za-z]:)?[/\\]([^\s/\\:]+[/\\])+")
#: Messages without a code about truncated binaries, and about binaries for another chip or version.
_UNUSABLE_BINARY = re.compile(r"create context|binary info")


def _load_error(status: int, output: str) -> BundleError:
    """One line with the status, the library's error messages without paths, and the most likely reason."""
    lines = [line for line in output.splitlines() if _ERROR_LINE.search(line) and not _WARNING_LINE.match(line)]
    reasons = [_FOLDERS.sub("", line.removeprefix("[ERROR]")).strip(' -."') for line in lines]
    sentence = f"Genie does not load the model: {'; '.join([_reason(status), *reasons])}."
    if known := explain(output):
        return BundleError(f"{sentence} {known.sentence}")
    if _UNUSABLE_BINARY.search(sentence):
        sentence += " A binary is truncated, or it was made for another chip or a newer runtime."
    return BundleError(sentence)
