"""ONNX Runtime's QNN provider: detects the NPU and opens sessions on it.

1. Import `onnxruntime` before any Qualcomm library. The other order crashes the process later.
2. The provider does not reject wrong options. It then reports success and the CPU runs every node. So sessions for the
   NPU disable CPU fallback, and `placement` reports where each node runs.
"""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice, no_npu_error
from gateway.qnn.driver_errors import explained

PROVIDER = "QNNExecutionProvider"
#: The chip that the emulator emulates by default: Snapdragon X Elite.
DEFAULT_SOC = 60


def find_npu() -> NpuDevice | None:
    """The real NPU of this machine; None if there is none. Never returns the emulator, never raises."""
    try:
        found = _ep_device()
    except (ImportError, OSError, RuntimeError):
        return None
    if found is None or found.device.type != ort.OrtHardwareDeviceType.NPU:
        return None
    name = _processor_name()
    return NpuDevice(kind="npu", name=name, soc=_soc_of(name))


def emulated_npu(soc: int = DEFAULT_SOC) -> NpuDevice | None:
    """The NPU emulator (the HTP backend on an x86_64 CPU); None if the provider has none."""
    try:
        found = _ep_device()
    except (ImportError, OSError, RuntimeError):
        return None
    if found is None or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    return NpuDevice(kind="emulated", name=f"HTP emulation on {platform.machine()}", soc=soc)


def any_npu(soc: int | None = None) -> NpuDevice:
    """The device for `provider = "qnn"`: the real NPU, else the emulator of chip `soc`.

    Raises BundleError when there is neither.
    """
    if device := find_npu() or emulated_npu(soc or DEFAULT_SOC):
        return device
    raise no_npu_error()


def open_session(
    model: Path,
    device: NpuDevice,
    options: Mapping[str, str] | None = None,
    session_config: Mapping[str, str] | None = None,
    *,
    cpu_fallback: bool = False,
) -> ort.InferenceSession:
    """Open a graph of fixed shape on the NPU. A graph without a compiled network is compiled first.

    Args:
        options: checked provider options that override `default_options`.
        session_config: session configuration entries that override ours (`ep.context_enable`, ...).
        cpu_fallback: let the CPU run the nodes that the NPU refuses; otherwise refuse the whole graph.
    Raises BundleError when the provider or the NPU refuses the graph.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in (_SESSION_CONFIG | dict(session_config or {})).items():
        settings.add_session_config_entry(key, value)
    if not cpu_fallback:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings.add_provider_for_devices([_ep_device()], default_options(device) | dict(options or {}))
    try:
        # without `enable_fallback=0`, a second try without the NPU hides the first error
        return ort.InferenceSession(model, settings, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise BundleError(f"The NPU refuses {model.name}: {explained(str(error))}") from error


def default_options(device: NpuDevice) -> dict[str, str]:
    """The default provider options: burst mode, float16, attention on the NPU."""
    import onnxruntime_qnn

    options = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "htp_performance_mode": "burst",
        "offload_graph_io_quantization": "0",
        "op_affinity": str(_AFFINITY_FILE),
    }
    if device.soc is not None:
        options |= {"soc_model": str(device.soc), "enable_htp_fp16_precision": "1"}
    if device.architecture is not None:
        options["htp_arch"] = str(device.architecture)
    return options


def placement(session: ort.InferenceSession) -> dict[str, int]:
    """Nodes of the loaded graph per provider: {"QNN": 58, "CPU": 2}. A compiled network is one node."""
    count: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        count[part.ep_name.removesuffix("ExecutionProvider")] += len(part.get_nodes())
    return dict(count)


def host_memory() -> Any:
    """The device memory that the host can access (OrtMemoryInfo); None if the driver offers none."""
    try:
        return _ep_device().memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    except Exception:  # the driver's exceptions have no common base class, and ordinary memory always works
        return None


def provider_version() -> str:
    import onnxruntime_qnn

    return str(onnxruntime_qnn.__version__)


#: Assigns attention to the NPU. Without it the provider leaves attention on the CPU.
_AFFINITY_FILE = Path(__file__).with_name("affinity.json")

_SESSION_CONFIG = {
    "session.intra_op.allow_spinning": "0",  # measured: spinning threads take a third of the CPU, with no gain here
    "session.record_ep_graph_assignment_info": "1",
}


@cache
def _ep_device() -> Any:
    """The provider's device, preferably a real NPU; None if the provider finds no device."""
    import onnxruntime_qnn

    ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    found.sort(key=lambda device: device.device.type != ort.OrtHardwareDeviceType.NPU)
    return found[0] if found else None


def _processor_name() -> str:
    """The processor name that Windows shows: "Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Oryon(TM) CPU"."""
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
    """60 for all X1 chips (X1E, X1P, X1-26). None for X2: sources disagree on its number, so the runtime detects it."""
    return 60 if any(word.startswith("X1") for word in processor.replace("-", " ").split()) else None
