"""ONNX Runtime's QNN provider: is it installed, which chip does it drive, and how a session on it is opened.

1. `onnxruntime` is imported before anything of Qualcomm's: the other order crashes the process later.
2. The provider never says no: with a wrong option it lists itself and lets the CPU run every node. So fallback to the
   CPU is switched off for every graph meant for the NPU, and `placement` asks where each node went.
"""

from __future__ import annotations

import atexit
import json
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from msgspec import Struct

from gateway.errors import BundleError

PROVIDER = "QNNExecutionProvider"
#: Hexagon architecture of each chip number. X Elite and X Plus are 60; for X2 Elite public sources say 87 and 88.
HTP_ARCHITECTURES = {60: 73, 87: 81, 88: 81}
#: The chip that the emulator plays when nobody names another: Snapdragon X Elite.
DEFAULT_SOC = 60


class NpuDevice(Struct, frozen=True, kw_only=True):
    """An NPU that sessions can be opened on: a real one, or Qualcomm's emulation of one on the host's CPU.

    `soc` is Qualcomm's number of the chip; None when the machine does not say which it has.
    """

    kind: Literal["npu", "emulated"]
    name: str
    soc: int | None

    @property
    def architecture(self) -> int | None:
        """The Hexagon version, 73 for v73; None when unknown."""
        return HTP_ARCHITECTURES.get(self.soc) if self.soc is not None else None


def find_npu() -> NpuDevice | None:
    """The machine's real NPU, or None. Never the emulator, never an exception: this is the question `auto` asks."""
    try:
        found = _ep_device()
    except (ImportError, OSError, RuntimeError):
        return None
    if found is None or found.device.type != ort.OrtHardwareDeviceType.NPU:
        return None
    name = _processor_name()
    return NpuDevice(kind="npu", name=name, soc=_soc_of(name))


def emulated_npu(soc: int = DEFAULT_SOC) -> NpuDevice | None:
    """The HTP backend emulated on this CPU (x86_64 only), or None where the provider has none."""
    try:
        found = _ep_device()
    except (ImportError, OSError, RuntimeError):
        return None
    if found is None or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    return NpuDevice(kind="emulated", name=f"HTP emulation on {platform.machine()}", soc=soc)


def any_npu(soc: int | None = None) -> NpuDevice:
    """What `provider = "qnn"` runs on: the real NPU, else the emulator, which plays chip `soc` if one is given.

    Raises BundleError when there is neither.
    """
    if device := find_npu() or emulated_npu(soc or DEFAULT_SOC):
        return device
    raise no_npu_error()


def no_npu_error() -> BundleError:
    return BundleError(
        f"This machine ({platform.system()} on {platform.machine()}) has no NPU that the QNN provider can use, "
        "and no NPU emulator; use provider = 'cpu'."
    )


def open_session(
    model: Path,
    device: NpuDevice,
    options: Mapping[str, str] | None = None,
    entries: Mapping[str, str] | None = None,
    *,
    fallback: bool = False,
) -> ort.InferenceSession:
    """Open a graph of static shapes on the NPU. Compiles it first unless it holds a compiled context.

    Args:
        options: provider options over `default_options`, already checked.
        entries: session configuration entries over ours (`ep.context_enable`, ...).
        fallback: let the CPU run what the NPU does not; otherwise such a graph is refused.
    Raises BundleError when the provider or the NPU does not take the graph.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in (_SESSION_ENTRIES | dict(entries or {})).items():
        settings.add_session_config_entry(key, value)
    if not fallback:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings.add_provider_for_devices([_ep_device()], default_options(device) | dict(options or {}))
    try:
        return ort.InferenceSession(model, settings)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise BundleError(f"The NPU refuses {model.name}: {_first_line(error)}") from error


def default_options(device: NpuDevice) -> dict[str, str]:
    """What every session gets that says nothing else: burst, fp16, attention on the NPU too."""
    import onnxruntime_qnn

    options = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "htp_performance_mode": "burst",
        "offload_graph_io_quantization": "0",
        "op_affinity": str(_affinity_file()),
    }
    if device.soc is not None:
        options |= {"soc_model": str(device.soc), "enable_htp_fp16_precision": "1"}
    if device.architecture is not None:
        options["htp_arch"] = str(device.architecture)
    return options


def placement(session: ort.InferenceSession) -> dict[str, int]:
    """Where the graph's nodes run: {"QNN": 60}, {"QNN": 58, "CPU": 2}. The nodes are those of the loaded model."""
    count: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        count[part.ep_name.removesuffix("ExecutionProvider")] += len(part.get_nodes())
    return dict(count)


def host_memory() -> Any:
    """The device's own memory that the host can write to (OrtMemoryInfo); None where the driver offers none."""
    try:
        return _ep_device().memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    except Exception:  # of no known kind, and ordinary memory always serves
        return None


def provider_version() -> str:
    import onnxruntime_qnn

    return str(onnxruntime_qnn.__version__)


_SESSION_ENTRIES = {
    "session.intra_op.allow_spinning": "0",  # spinning threads cost a third of the CPU and gain nothing here
    "session.record_ep_graph_assignment_info": "1",
}


@cache
def _ep_device() -> Any:
    """The provider's device, the NPU before any other; None when the provider finds no device at all."""
    import onnxruntime_qnn

    ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    found.sort(key=lambda device: device.device.type != ort.OrtHardwareDeviceType.NPU)
    return found[0] if found else None


@cache
def _affinity_file() -> Path:
    """The provider leaves attention to the CPU unless a file like this one says otherwise."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="npu-gateway-", suffix=".json", delete=False, encoding="utf-8"
    ) as file:
        json.dump({"op_type": {"GroupQueryAttention": "htp"}}, file)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return Path(file.name)


def _processor_name() -> str:
    """The processor's name as Windows shows it: "Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Oryon(TM) CPU"."""
    if sys.platform == "win32":
        import winreg

        key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as processor:
                return str(winreg.QueryValueEx(processor, "ProcessorNameString")[0]).strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def _soc_of(processor: str) -> int | None:
    """X1 chips (X1E, X1P, X1-26) all are number 60; the X2's number is not settled, so the runtime finds it itself."""
    return 60 if any(word.startswith("X1") for word in processor.replace("-", " ").split()) else None


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + "…"
