"""Genie, Qualcomm's runtime for language models, through its C API by ctypes.

The library comes with the onnxruntime-qnn wheel: libGenie.so drives the HTP emulation on x86_64 Linux, Genie.dll the
NPU on Windows. What the functions take and give is what the vendor's public API pages say, checked by calling them.

1. `onnxruntime` is imported before the library is loaded: the other order crashes the process at a later session.
2. A sampler parameter that is set on an existing configuration is not always heeded; one made from JSON is.
3. Reasons for a refusal are printed, not returned. So what the library prints while it loads is caught and passed on.
4. A dialog that is still open when the process ends takes it down with a C++ exception: `close` it.
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

from gateway.errors import BundleError, EngineFailed
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
_FAULTS = {
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


class Sentence(IntEnum):
    """What a query is to the dialog."""

    COMPLETE = 0  # a whole prompt; the begin token is put before it unless it is there
    REWIND = 5  # a whole prompt as it is, of which the beginning that it shares with the last one is kept


class Performance(IntEnum):
    """How fast the NPU is to be, and how hungry."""

    BURST = 10
    POWER_SAVER = 70


class End(IntEnum):
    """How a query came to its end."""

    DONE = _DONE
    ABORTED = _ABORTED
    CONTEXT_EXCEEDED = _CONTEXT_EXCEEDED


class GenieDialog:
    """One model, loaded, and the conversation in its cache. One thread.

    Args:
        config: as a config.json holds it, paths absolute.
    Raises BundleError when the library does not take the configuration or the binaries, EngineFailed when there is
    no such library.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._library = _load_library()
        self._dialog, self._sampler = _Handle(), _Handle()
        with captured_output() as output:
            status = self._open(json.dumps(config).encode())
        if status != _DONE:
            raise BundleError(_refusal(status, output.text))

    def query(self, ids: Sequence[int], sentence: Sentence, on_tokens: Callable[[list[int]], bool]) -> End:
        """Compute `ids` and generate. `on_tokens` gets each token as it comes and says whether to go on.

        End tokens are not among them. Raises EngineFailed, and whatever `on_tokens` raised.
        """
        raised: list[BaseException] = []

        def receive(tokens: Any, count: int, code: int, _: Any) -> None:
            try:
                go_on = not raised and (count == 0 or on_tokens(tokens[:count]))
            except BaseException as error:  # must not travel through the library
                raised.append(error)
                go_on = False
            if not go_on:
                self._library.GenieDialog_signal(self._dialog, _ABORT)

        array = (c_uint32 * len(ids))(*ids)
        status = self._library.GenieDialog_tokenQuery(
            self._dialog, array, len(ids), sentence, _TokenCallback(receive), None
        )
        if raised:
            raise raised[0]
        try:
            return End(status)
        except ValueError:
            raise EngineFailed(f"Genie failed while it generated: {_fault(status)}.") from None

    def limit(self, tokens: int) -> None:
        """Generate at most so many in each query from now on; 0: only compute the prompt."""
        self._call("GenieDialog_setMaxNumTokens", self._dialog, tokens)

    def sample(self, *, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        """Choose tokens this way from now on; the seed counts from the next `reset`.

        Args:
            temperature: above 0.
            top_k: 1 is greedy, 0 is off.
            seed: 0..2^31-1.
        """
        settings = {"version": 1, "temp": temperature, "top-k": top_k, "top-p": top_p, "seed": seed}
        config = _Handle()
        self._call("GenieSamplerConfig_createFromJson", json.dumps({"sampler": settings}).encode(), byref(config))
        try:
            self._call("GenieSampler_applyConfig", self._sampler, config)
        finally:
            self._library.GenieSamplerConfig_free(config)

    def reset(self) -> None:
        """Forget the conversation; the sampler starts again from its seed."""
        self._call("GenieDialog_reset", self._dialog)

    def perform(self, performance: Performance) -> None:
        self._call("GenieDialog_setPerformancePolicy", self._dialog, performance)

    def close(self) -> None:
        """Give the device and the memory back."""
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
            raise EngineFailed(f"{function} failed: {_fault(status)}.")


@cache
def _load_library() -> Any:
    """The library with its prototypes. Raises EngineFailed when it is not here or is another than expected."""
    try:
        import onnxruntime  # noqa: F401  before anything of Qualcomm's
        import onnxruntime_qnn

        folder = Path(onnxruntime_qnn.__file__).parent
        library = _open_library(folder)
    except (ImportError, OSError) as error:
        raise EngineFailed(f"Genie cannot be loaded on this machine: {error}.") from error
    missing = [name for name in _PROTOTYPES if not hasattr(library, name)]
    if missing:
        raise EngineFailed(f"This machine's Genie is of another version: it lacks {', '.join(missing)}.")
    for name, arguments in _PROTOTYPES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int32
    return library


def _open_library(folder: Path) -> Any:
    if sys.platform != "win32":
        return ctypes.CDLL(str(folder / "libGenie.so"))
    # Genie.dll loads QnnHtp.dll by its bare name, that one its part for the chip, and the driver looks for the code
    # that runs on the NPU itself in ADSP_LIBRARY_PATH.
    os.add_dll_directory(str(folder))
    os.putenv("PATH", f"{folder}{os.pathsep}{os.getenv('PATH', '')}")
    os.putenv("ADSP_LIBRARY_PATH", str(folder))
    return ctypes.CDLL(str(folder / "Genie.dll"))


def _fault(status: int) -> str:
    return _FAULTS.get(status, f"status {status}")


_COMPLAINT = re.compile(r"error|fail|can't|at '/|exceed", re.IGNORECASE)
_WARNING = re.compile(r"\W*warn", re.IGNORECASE)
_FOLDERS = re.compile(r"([A-Za-z]:)?[/\\]([^\s/\\:]+[/\\])+")
#: What it says of binaries that this chip or this version cannot use, or that are cut short.
_FOREIGN_BINARY = re.compile(r"5005|1002|30001|create context|binary info")


def _refusal(status: int, output: str) -> str:
    """What the library said of it, in a line, with the likeliest reason."""
    lines = [line for line in output.splitlines() if _COMPLAINT.search(line) and not _WARNING.match(line)]
    said = [_FOLDERS.sub("", line.removeprefix("[ERROR]")).strip(' -."') for line in lines]
    sentence = f"Genie does not load the model: {'; '.join([_fault(status), *said])}."
    if _FOREIGN_BINARY.search(sentence):
        sentence += " A binary is cut short, or was made for another chip or a newer runtime."
    return sentence
