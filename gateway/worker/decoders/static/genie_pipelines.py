"""Opens a Genie bundle in our own engine: Qualcomm's published models with all that the token loop can do.

The context binaries stay where they are. A temporary folder gets one small ONNX file for each of their graphs and two
for the host's work, and is removed when the sessions are open. Everything about the graphs comes from the binaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import onnx

from gateway.bundles.genai_config import (
    DecoderConfig,
    GenaiConfig,
    Inputs,
    Outputs,
    Search,
    SessionOptions,
    SlidingWindow,
    Stage,
)
from gateway.bundles.genie.bundle import GenieBundle
from gateway.bundles.preflight.preflight import require_fit
from gateway.bundles.static_pipeline import Pipeline
from gateway.errors import BundleError, ConfigError
from gateway.qnn.binary_info import Graph
from gateway.qnn.chains import COSINES, LOGITS, MASK, SINES, Chains, Part, read_chains
from gateway.qnn.context import CompiledGraph, check_compatible
from gateway.qnn.device import NpuDevice, machine_of
from gateway.qnn.wrapper import wrapper
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.host_graphs import LOGITS_FLOAT, MASK_ONES, input_graph, logits_graph
from gateway.worker.decoders.static.open import open_pipelines, select_device, why_no_npu
from gateway.worker.decoders.static.rope import rope_table
from gateway.worker.genie.graph_sizes import warn_of_other_metadata

_INPUT_FILE, _LOGITS_FILE = "host_inputs.onnx", "host_logits.onnx"


def open_genie_decoder(
    bundle: GenieBundle,
    *,
    provider: Literal["auto", "cpu", "qnn"] = "auto",
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    context_length: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> StaticDecoder:
    """Open the graphs of a Genie bundle. The arguments are those of `open_static_decoder`.

    Raises BundleError when our own engine cannot run the bundle, and as `open_static_decoder`.
    """
    device = select_device(provider, options or {})
    if device is None:
        raise ConfigError(f"{bundle.folder.name} is compiled for the NPU, and {why_no_npu(provider)}")
    with genie_pipelines(bundle, device) as found:
        return open_pipelines(
            found.pipelines,
            narrow=found.narrow,
            binaries=found.binaries,
            provider=provider,
            options=options,
            threads=threads,
            context_length=context_length,
            progress=progress,
        )


class GeniePipelines(NamedTuple):
    """Shortest context first. `narrow`: those of the bundle that verify drafts, or none.

    `binaries`: for each ONNX file of a binary's graph that binary.
    """

    pipelines: list[Pipeline]
    narrow: list[Pipeline]
    binaries: dict[Path, Path]


@contextmanager
def genie_pipelines(bundle: GenieBundle, device: NpuDevice) -> Iterator[GeniePipelines]:
    """The pipelines of a bundle. Their files exist until the context ends.

    Raises BundleError if `device` is another chip than the bundle's.
    """
    require_fit(bundle.folder, machine_of(device))
    with TemporaryDirectory(prefix="npu-gateway-", ignore_cleanup_errors=True) as folder:
        yield _write_pipelines(bundle, device, Path(folder).resolve())


def _write_pipelines(bundle: GenieBundle, device: NpuDevice, folder: Path) -> GeniePipelines:
    where = bundle.folder.name
    if bundle.dialog_type != "basic":
        raise BundleError(f"{where} is a dialog of type {bundle.dialog_type!r}. Only Genie runs it: engine = 'genie'.")
    folder = folder / where  # its name is in error messages
    folder.mkdir()
    chains = read_chains(bundle.binaries)
    graphs: dict[str, list[Graph]] = {}
    for part in (part for chain in chains for part in chain.parts):
        graphs.setdefault(part.binary.name, []).append(part.graph)
        chip = CompiledGraph(binaries=(part.binary,), cpu_nodes=0, soc=part.soc, architecture=part.architecture)
        check_compatible(part.binary, chip, device)
    warn_of_other_metadata(bundle.folder, graphs)
    _write_host_graphs(bundle, chains, folder)
    files = _GraphFiles(folder)
    pipelines, narrow = [], []
    for chain in chains:
        stages = [*files.stages("prompt", chain, chain.prompt), *files.stages("token", chain, chain.step)]
        pipelines.append(_pipeline(bundle, chain, folder, chain.width, stages))
        if chain.narrow:
            stages = files.stages("verify", chain, chain.narrow)
            narrow.append(_pipeline(bundle, chain, folder, chain.narrow_width, stages))
    return GeniePipelines(pipelines, narrow, files.binaries)


class _GraphFiles:
    """Writes an ONNX file for each graph into `folder`."""

    def __init__(self, folder: Path) -> None:
        self.binaries: dict[Path, Path] = {}
        self._folder = folder

    def stages(self, phase: str, chain: Chains, parts: Sequence[Part]) -> list[Stage]:
        stages = []
        for number, part in enumerate(parts, start=1):
            file = self._folder / f"{phase}_cl{chain.context}_{number}_of_{len(parts)}.onnx"
            onnx.save(wrapper(part.graph, part.binary.name), file)
            self.binaries[file] = part.binary
            stages.append(_npu_stage(file.name, phase))
        return stages


def _write_host_graphs(bundle: GenieBundle, chains: Sequence[Chains], folder: Path) -> None:
    longest, where = chains[-1], bundle.folder.name
    logits = longest.tensor(LOGITS)
    if logits.shape[-1] != bundle.vocab_size:
        raise BundleError(
            f"{where}: its graphs have {logits.shape[-1]} tokens and its configuration {bundle.vocab_size}."
        )
    mask, cosines, sines = (longest.tensor(name) for name in (MASK, COSINES, SINES))
    table = rope_table(bundle.config, longest.context, where)
    if table[0].shape[-1] != cosines.shape[-1]:
        raise BundleError(
            f"{where}: its graphs take {cosines.shape[-1]} cosines and its configuration says {table[0].shape[-1]}."
        )
    onnx.save(input_graph(mask, cosines, sines, table), folder / _INPUT_FILE)
    onnx.save(logits_graph(logits), folder / _LOGITS_FILE)


def _npu_stage(filename: str, phase: str) -> Stage:
    return Stage(
        filename=filename,
        run_on_prompt=phase != "token",
        run_on_token_gen=phase == "token",
        session_options=SessionOptions(providers={"qnn": {}}),
    )


def _pipeline(bundle: GenieBundle, chains: Chains, folder: Path, width: int, graphs: Sequence[Stage]) -> Pipeline:
    keys = chains.tensor("past_key_0_in")
    window = SlidingWindow(window_size=width, pad_value=keys.zero_point)
    decoder = DecoderConfig(
        num_hidden_layers=chains.layers,
        num_key_value_heads=keys.shape[0],
        head_size=keys.shape[2],
        inputs=Inputs(attention_mask=MASK_ONES, past_key_names="past_key_%d_in", past_value_names="past_value_%d_in"),
        outputs=Outputs(
            logits=LOGITS_FLOAT, present_key_names="past_key_%d_out", present_value_names="past_value_%d_out"
        ),
        sliding_window=window,
        stages=(Stage(filename=_INPUT_FILE), *graphs, Stage(filename=_LOGITS_FILE)),
    )
    config = GenaiConfig(
        model_type="decoder-pipeline",
        vocab_size=bundle.vocab_size,
        context_length=chains.context,
        eos_ids=bundle.end_ids,
        bos_id=bundle.bos_id,
        pad_id=None,
        tokenizer_dir="",
        decoder=decoder,
        search=Search(),
    )
    return Pipeline(folder=folder, config=config, window=window, open_rows=chains.context)
