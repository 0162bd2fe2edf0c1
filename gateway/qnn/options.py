"""The provider options of the QNN provider and their allowed values.

The provider ignores a misspelt option silently. So the gateway passes only options that are in this table.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gateway.errors import ConfigError

#: The performance modes that a running session can switch to. Every other mode ends the process, `default` too.
DYNAMIC_MODES = (
    "burst",
    "sustained_high_performance",
    "high_performance",
    "balanced",
    "low_balanced",
    "high_power_saver",
    "power_saver",
    "low_power_saver",
    "extreme_power_saver",
)

#: value -> what is wrong with it, or None
_Check = Callable[[str], str | None]


def _one_of(*allowed: str) -> _Check:
    return lambda value: None if value in allowed else f"must be one of {', '.join(allowed)}{_nearest(value, allowed)}"


def _number(low: int, high: int) -> _Check:
    def check(value: str) -> str | None:
        fits = value.isdecimal() and low <= int(value) <= high
        return None if fits else f"must be a whole number from {low} to {high}"

    return check


def _file(value: str) -> str | None:
    return None if Path(value).is_file() else "must be the path of a file"


def _folder(value: str) -> str | None:
    return None if Path(value).is_dir() else "must be the path of a folder"


def _text(value: str) -> str | None:
    return None if value else "must not be empty"


_FLAG = _one_of("0", "1")

_OPTIONS: dict[str, _Check] = {
    "backend_path": _file,
    "backend_type": _one_of("htp"),
    "disable_file_mapped_weights": _FLAG,
    "dump_json_qnn_graph": _FLAG,
    "enable_block_quant_weight_optimization": _FLAG,
    "enable_framework_op_trace": _FLAG,
    "enable_htp_fp16_precision": _FLAG,
    "enable_htp_prepare_and_load": _FLAG,
    "enable_htp_prepare_only": _FLAG,
    "enable_htp_shared_memory_allocator": _FLAG,
    "enable_htp_spill_fill_buffer": _FLAG,
    "enable_htp_graph_splitting": _FLAG,
    "enable_vtcm_backup_buffer_sharing": _FLAG,
    "extended_udma": _FLAG,
    "htp_arch": _one_of("68", "69", "73", "75", "79", "81"),
    "htp_bf16_enable": _FLAG,
    "htp_graph_finalization_optimization_mode": _number(0, 3),
    "htp_performance_mode": _one_of("default", *DYNAMIC_MODES),
    "htp_reused_io_limit_mb": _number(0, 1 << 20),
    "htp_share_resource_optimization": _FLAG,
    "json_qnn_graph_dir": _folder,
    "num_graph_prepare_threads": _number(1, 64),
    "offload_graph_io_quantization": _FLAG,
    "op_affinity": _file,
    "profiling_file_path": _text,
    "profiling_level": _one_of("off", "basic", "detailed", "optrace"),
    "qnn_context_priority": _one_of("low", "normal", "normal_high", "high"),
    "rpc_control_latency": _number(0, 1_000_000),
    "skip_qnn_version_check": _FLAG,
    "soc_model": _number(1, 9999),
    "vtcm_mb": _number(0, 64),
}


def check_options(options: Mapping[str, str], where: str) -> None:
    """Raise ConfigError for an unknown option or a value that is not allowed.

    Args:
        options: provider options from the configuration.
        where: the start of the message ("config.toml: [models.x] provider_options").
    """
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ConfigError(f"{where}: the QNN provider has no option {name!r}{_nearest(name, _OPTIONS)}")
        if problem := _OPTIONS[name](value):
            raise ConfigError(f"{where}: {name} = {value!r}: {problem}")
    if {"backend_path", "backend_type"} <= options.keys():
        raise ConfigError(f"{where}: backend_path and backend_type exclude each other")


def known_options(options: Mapping[str, str]) -> dict[str, str]:
    """The valid options of a bundle. Bundles also name options of other runtimes; those are dropped."""
    return {name: value for name, value in options.items() if name in _OPTIONS and _OPTIONS[name](value) is None}


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""
