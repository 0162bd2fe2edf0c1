"""Reads bundles with graphs of fixed shape: a pipeline of stages that runs once for each window of tokens.

AI Hub, Windows ML and our builder write this layout. genai_config.json describes the stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from gateway.bundles.genai_config import GenaiConfig, SlidingWindow, Stage, read_genai_config
from gateway.errors import BundleError

#: Rows of a cache if the graphs leave the number open and the configuration sets none. The context length of these
#: bundles is that of the original model, up to 131072, and all rows are allocated.
OPEN_ROWS = 4096


#: The compiled head for the NPU, next to the bundle's head for the CPU. genai_config.json does not name it, because
#: only this gateway runs a head for a part of a window's rows.
NPU_HEAD = "npu_head_ctx.onnx"


class CacheTensor(Struct, frozen=True):
    """One tensor of the KV cache: its name as input, its name as output, and the axis of the rows."""

    past: str
    present: str
    axis: int


class Pipeline(Struct, frozen=True, kw_only=True):
    """One pipeline: for windows of `window.window_size` tokens and for single steps, over a cache of fixed size.

    `open_rows`: the rows of the cache if the graphs leave their number open, as Olive's graphs do.
    """

    folder: Path
    config: GenaiConfig
    window: SlidingWindow
    open_rows: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.config.decoder.stages

    @property
    def in_place(self) -> bool:
        """True if the graphs write new rows into the whole cache. False if they return only the new rows."""
        return not self.window.slide_key_value_cache

    @property
    def pad_id(self) -> int:
        return self.config.pad_id if self.config.pad_id is not None else next(iter(self.config.eos_ids), 0)

    def file(self, stage: Stage) -> Path:
        return (self.folder / stage.filename).resolve()

    def cache_tensors(self) -> Iterator[CacheTensor]:
        """The keys and the values of every layer.

        If `in_place`, both are (1, kv_heads, context, head_dim). Else keys are (kv_heads, 1, head_dim, rows) and
        values (kv_heads, 1, rows, head_dim).
        """
        decoder = self.config.decoder
        for index in range(decoder.num_hidden_layers):
            for past, present, axis in (
                (decoder.inputs.past_key_names, decoder.outputs.present_key_names, 2 if self.in_place else 3),
                (decoder.inputs.past_value_names, decoder.outputs.present_value_names, 2),
            ):
                yield CacheTensor(past.replace("%d", str(index)), present.replace("%d", str(index)), axis)


def runs_on_npu(stage: Stage) -> bool:
    return "qnn" in stage.session_options.providers


def read_pipelines(folder: Path, context_length: int = 0) -> list[Pipeline]:
    """The bundle's pipelines, shortest context first: one in its root folder, others in its folders `context-*`.

    Args:
        context_length: the configured rows of a cache whose graphs leave the number open; 0: the default.
    Raises BundleError.
    """
    inner = [path.parent for path in folder.glob("context-*/genai_config.json")]
    found = _shortest_first([folder, *inner], context_length)
    if len({pipeline.window.window_size for pipeline in found}) != 1:
        raise BundleError(f"{folder.name}: its pipelines have windows of different widths. Build it again.")
    return found


def read_batch_pipelines(folder: Path) -> list[Pipeline]:
    """The pipelines for batched steps, shortest context first, in the folders `batch-*`. Only our builder writes them.

    Raises BundleError.
    """
    return _shortest_first(path.parent for path in folder.glob("batch-*/genai_config.json"))


def read_verify_pipelines(folder: Path) -> list[Pipeline]:
    """The pipelines with narrow windows, as `read_batch_pipelines`, in the folders `verify-*`."""
    return _shortest_first(path.parent for path in folder.glob("verify-*/genai_config.json"))


def _shortest_first(folders: Iterable[Path], context_length: int = 0) -> list[Pipeline]:
    found = [_read(folder, context_length) for folder in folders]
    return sorted(found, key=lambda pipeline: pipeline.config.context_length)


def _read(folder: Path, context_length: int) -> Pipeline:
    config = read_genai_config(folder)
    if not config.decoder.stages or config.decoder.sliding_window is None:
        raise BundleError(f"{folder.name}: genai_config.json describes no pipeline with a sliding window.")
    rows = min(config.context_length, context_length or OPEN_ROWS)
    return Pipeline(folder=folder, config=config, window=config.decoder.sliding_window, open_rows=rows)
