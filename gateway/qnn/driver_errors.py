"""What the error codes of Qualcomm's libraries mean for a user: one sentence and the next step.

The libraries print numbers, names or both: "err 5005", "0x138d", "QNN_CONTEXT_ERROR_CREATE_FROM_BINARY". Numbers and
names are those of the public API pages (`QNN_CODES`). What a code means in practice is from public reports.
"""

from __future__ import annotations

import re

from msgspec import Struct

#: The public list of error codes.
QNN_CODES = "https://docs.qualcomm.com/bundle/publicresource/80-63442-10/topics/api_error_codes.md"

_UPGRADE = "`python -m pip install --upgrade onnxruntime-qnn` gets the newest runtime."
_DRIVER = "Update the NPU's driver with Windows Update, then run `npu-gateway doctor`."
_FETCH = "`npu-gateway check FOLDER` compares it with this machine; `npu-gateway catalog` lists models for it."
_SMALLER = "Stop other programs that use the NPU, or choose a smaller model: `npu-gateway catalog`."
_RESTART = "The gateway starts the worker again; if it repeats, restart the machine and run `npu-gateway doctor`."


class DriverError(Struct, frozen=True):
    """One code. `source`: a public page or report that has it.

    Args:
        code: as the libraries print it in decimal, or a status of the driver in hexadecimal.
        name: its name in the API; "" if it has none.
        meaning: one sentence.
        step: what a person can do, with a command.
    """

    code: int
    name: str
    meaning: str
    step: str
    source: str = QNN_CODES

    @property
    def sentence(self) -> str:
        shown = hex(self.code) if self.code > 0xFFFF else str(self.code)
        return f"{self.meaning} (error {shown}{f', {self.name}' if self.name else ''}). {self.step}"


#: A driver often prints several codes for one fault: the first of these is its reason, the others follow from it.
DRIVER_ERRORS = (
    DriverError(
        0x80000406,
        "",
        "The driver does not find the library that runs on the NPU, or refuses its signature",
        f"{_UPGRADE} {_DRIVER}",
        "https://docs.qualcomm.com/doc/80-63442-50/topic/faq.html",
    ),
    DriverError(
        1008,
        "QNN_COMMON_ERROR_INCOMPATIBLE_BINARIES",
        "The runtime and the NPU's driver are of versions that do not fit together",
        f"{_UPGRADE} {_DRIVER}",
        "https://app.aihub.qualcomm.com/docs/hub/faq.html",
    ),
    DriverError(
        1002,
        "QNN_COMMON_ERROR_MEM_ALLOC",
        "The NPU has too little memory for this model",
        _SMALLER,
        "https://github.com/pytorch/executorch/issues/18862",
    ),
    DriverError(
        8003,
        "QNN_MEM_ERROR_MAPPING",
        "The NPU cannot map the memory of this model",
        _SMALLER,
    ),
    DriverError(
        1010,
        "QNN_COMMON_ERROR_RESOURCE_UNAVAILABLE",
        "Another program, or another model, holds what the NPU needs for this model",
        _SMALLER,
    ),
    DriverError(
        5004,
        "QNN_CONTEXT_ERROR_BINARY_VERSION",
        "The model was compiled with a newer runtime than the installed one",
        _UPGRADE,
    ),
    DriverError(
        5005,
        "QNN_CONTEXT_ERROR_CREATE_FROM_BINARY",
        "A file of the model is damaged, or it was compiled for another chip or with a newer runtime",
        _FETCH,
        "https://github.com/qualcomm/ai-hub-models/issues/192",
    ),
    DriverError(
        5000,
        "QNN_CONTEXT_ERROR_INVALID_ARGUMENT",
        "The model was compiled for another chip or with a newer runtime",
        _FETCH,
        "https://github.com/qualcomm/ai-hub-apps/issues/148",
    ),
    DriverError(
        30010,
        "",
        "A file of the model is no context binary that the runtime can read",
        _FETCH,
        "https://github.com/pytorch/executorch/issues/8640",
    ),
    DriverError(
        30001,
        "QNN_SYSTEM_CONTEXT_ERROR_INVALID_ARGUMENT",
        "A file of the model is no context binary that the runtime can read",
        _FETCH,
    ),
    DriverError(
        1003,
        "QNN_COMMON_ERROR_SYSTEM",
        "The driver's service does not answer",
        _RESTART,
        "https://github.com/UbiquitousLearning/mllm/issues/272",
    ),
    DriverError(
        1007,
        "QNN_COMMON_ERROR_SYSTEM_COMMUNICATION",
        "The NPU was reset while it worked",
        _RESTART,
        "https://github.com/microsoft/onnxruntime/pull/20579",
    ),
    DriverError(
        1011,
        "QNN_COMMON_ERROR_SYSTEM_COMMUNICATION_FATAL",
        "The NPU was reset while it worked and did not come back",
        _RESTART,
        "https://github.com/microsoft/onnxruntime/pull/20579",
    ),
    DriverError(
        6001,
        "QNN_GRAPH_ERROR_INVALID_HANDLE",
        "The NPU lost the loaded model",
        _RESTART,
    ),
    DriverError(
        8002,
        "QNN_MEM_ERROR_ALREADY_REGISTERED",
        "The driver has not released memory of the model's last use",
        _RESTART,
    ),
    DriverError(
        1009,
        "QNN_COMMON_ERROR_LOADING_BINARIES",
        "The library for the NPU could not be loaded a second time",
        _RESTART,
        "https://github.com/qualcomm/ai-hub-models/issues/101",
    ),
    DriverError(
        1000,
        "QNN_COMMON_ERROR_NOT_SUPPORTED",
        "The runtime does not support something that this model or an option needs",
        _UPGRADE,
    ),
    DriverError(
        1006,
        "QNN_COMMON_ERROR_PLATFORM_NOT_SUPPORTED",
        "The runtime does not support this machine",
        "`npu-gateway doctor` shows the machine; provider = 'cpu' runs a model without the NPU.",
    ),
    DriverError(
        14002,
        "QNN_DEVICE_ERROR_HARDWARE_UNAVAILABLE",
        "The driver reports that the NPU cannot be used now",
        _DRIVER,
    ),
    DriverError(
        14001,
        "QNN_DEVICE_ERROR_INVALID_CONFIG",
        "The driver does not open the NPU: it does not know the chip, or is older than the runtime",
        _DRIVER,
        "https://github.com/microsoft/onnxruntime/issues/21214",
    ),
    DriverError(
        4000,
        "QNN_BACKEND_ERROR_CANNOT_INITIALIZE",
        "The driver of the NPU does not start",
        _DRIVER,
        "https://github.com/UbiquitousLearning/mllm/issues/341",
    ),
    DriverError(
        1100,
        "QNN_COMMON_ERROR_GENERAL",
        "The NPU failed in the middle of a computation and gives no reason",
        _RESTART,
        "https://github.com/qualcomm/ai-hub-apps/issues/128",
    ),
)

#: Words after which a number is a code: "err 1002", "Error: 14001", "error code 0x138d", "Remote symbols 4000".
_NUMBER = re.compile(
    r"\b(?:err|error|errors|code|status|result|symbols|failed|returned)\b[\s:=(,\"']*(?:code\b)?[\s:=(,\"']*"
    r"(0x[0-9a-f]{3,8}|\d{4,10})\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"\bQNN_[A-Z_]+\b")
_FOLDERS = re.compile(r"([A-Za-z]:)?[/\\]([^\s/\\:]+[/\\])+")  # a message contains no path of the server
#: ONNX Runtime's words when the driver refused a graph and it may not use the CPU instead. It hides the reason.
_HIDDEN = "fallback to CPU EP has been explicitly disabled"


def explain(text: str) -> DriverError | None:
    """The reason in a message of a native library. None: it has no code that is known."""
    codes = {int(number, 0) for number in _NUMBER.findall(text)}
    names = set(_NAME.findall(text))
    return next((each for each in DRIVER_ERRORS if each.code in codes or each.name in names), None)


def explained(text: str) -> str:
    """A message of a native library for a user: with its meaning and the next step if it is known, in one line."""
    words = " ".join(_FOLDERS.sub("", text).split())
    words = words if len(words) <= 300 else words[:300] + "…"
    if known := explain(text):
        return f"{known.sentence} The driver's message: {words}"
    if _HIDDEN in text:
        return f"The driver does not open the NPU, or a node of the graph does not run on it. {_DRIVER} {words}"
    return words
