"""Bundles of fixed shape: the chain of graphs that runs once for every window of tokens, by genai_config.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from gateway.bundles.genai_config import GenaiConfig, SlidingWindow, Stage, read_genai_config
from gateway.errors import BundleError


class CacheTensor(Struct, frozen=True):
    """What the graphs call one tensor of the cache going in and coming out, and which of its axes counts rows."""

    past: str
    present: str
    axis: int


class Pipeline(Struct, frozen=True, kw_only=True):
    """One chain: for windows of `window.window_size` tokens and for single steps, over a cache of fixed size."""

    folder: Path
    config: GenaiConfig
    window: SlidingWindow

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.config.decoder.stages

    @property
    def in_place(self) -> bool:
        """Whether the graphs write new rows into the whole cache; else they hand back the new rows alone."""
        return not self.window.slide_key_value_cache

    @property
    def pad_id(self) -> int:
        return self.config.pad_id if self.config.pad_id is not None else next(iter(self.config.eos_ids), 0)

    def file(self, stage: Stage) -> Path:
        return (self.folder / stage.filename).resolve()

    def cache_tensors(self) -> Iterator[CacheTensor]:
        """The keys and the values of every layer.

        In place both are (1, kv_heads, context, head_dim); else keys are (kv_heads, 1, head_dim, rows) and values
        (kv_heads, 1, rows, head_dim).
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


def read_pipelines(folder: Path) -> list[Pipeline]:
    """The bundle's chains, shortest context first: the one at its root, and those in its folders `context-*`.

    Raises BundleError.
    """
    found = _shortest_first([folder, *(path.parent for path in folder.glob("context-*/genai_config.json"))])
    if len({pipeline.window.window_size for pipeline in found}) != 1:
        raise BundleError(f"{folder.name}: its context lengths have windows of different widths.")
    return found


def read_batches(folder: Path) -> list[Pipeline]:
    """Its chains for single steps of several sequences, shortest context first, in its folders `batch-*`; only our
    own bundles have them.

    Raises BundleError.
    """
    return _shortest_first(path.parent for path in folder.glob("batch-*/genai_config.json"))


def _shortest_first(folders: Iterable[Path]) -> list[Pipeline]:
    return sorted(map(_read, folders), key=lambda pipeline: pipeline.config.context_length)


def _read(folder: Path) -> Pipeline:
    config = read_genai_config(folder)
    if not config.decoder.stages or config.decoder.sliding_window is None:
        raise BundleError(f"{folder.name}: genai_config.json describes no pipeline with a sliding window.")
    return Pipeline(folder=folder, config=config, window=config.decoder.sliding_window)
