"""From any exception in a worker to the GatewayError that the gateway reports.

The exceptions of a native library are converted before, in that library's own module: ONNX Runtime in decoders/onnx.py,
llguidance in grammar/constraint.py, Genie in genie/library.py. What a device call raises is converted in
activity.py. So another exception is a bug of ours here: it fails one request with 500, and no device is blamed.
"""

from __future__ import annotations

import logging

from gateway.activity import NO_MEMORY
from gateway.errors import EngineFailed, GatewayError, InvalidRequest
from gateway.worker.frames import Failed, Submit

_log = logging.getLogger(__name__)


def as_gateway_error(error: BaseException, component: str = "The worker") -> GatewayError:
    """The error itself if it is a GatewayError, else a new one. An unexpected error is logged with its traceback."""
    match error:
        case GatewayError():
            return error
        case MemoryError():
            return EngineFailed(NO_MEMORY)
        case ConnectionError():
            pass  # the gateway has ended and closed the pipe: nothing to log
        case _:
            _log.error("%s failed", component, exc_info=error)
    return GatewayError(f"{component} failed: {type(error).__name__}. The gateway's log has the reason.")


def failed_frame(id: int | None, error: GatewayError) -> Failed:
    return Failed(id, type(error).__name__, error.message, error.param)


def check_vocabulary(frame: Submit, size: int) -> None:
    """Raises InvalidRequest for a token id that the model does not have. Its tokenizer can have more ids."""
    biased = list(frame.sampling.logit_bias)
    for name, ids in (("prompt", frame.ids), ("prediction", frame.prediction), ("logit_bias", biased)):
        if ids and not 0 <= min(ids) <= max(ids) < size:
            raise InvalidRequest(f"{name} has a token id outside 0..{size - 1}.", param=name)
