"""The tiny decoder in parts, as AI Hub publishes models: one binary for each part, with the graphs of two contexts.

    tiny_part_1_of_3.bin  input_ids -> embedding
    tiny_part_2_of_3.bin  embedding, mask, positions, cache -> hidden state, new rows of the cache
    tiny_part_3_of_3.bin  hidden state -> logits

Each binary has `prompt_ar8_clC_i_of_3` and `token_ar1_clC_i_of_3` for C = 64 and 128.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.utils import Extractor

from tests.support.npu.tiny_htp_decoder import PROMPT_WIDTH, TinyDecoder
from tests.support.npu.tiny_htp_graph import build_graph
from tests.support.paths import ROOT

CONTEXTS = (64, 128)
_PHASES = {PROMPT_WIDTH: "prompt", 4: "verify", 1: "token"}
WIDTHS = (PROMPT_WIDTH, 1)
_EMBEDDING, _HIDDEN = "_model_model_embed_tokens_Gather_output_0", "_model_model_layers_0_Add_1_output_0"
_NAMES = {"hidden_codes": _EMBEDDING, "residual_codes": _HIDDEN}
_HOST = ["attention_mask", "position_ids_cos", "position_ids_sin", "past_key_0_in", "past_value_0_in"]
#: The inputs and the outputs of each part.
_PARTS = (
    (["input_ids"], ["hidden_codes"]),
    (["hidden_codes", *_HOST], ["residual_codes", "past_key_0_out", "past_value_0_out"]),
    (["residual_codes"], ["logits"]),
)


def write_published_binaries(
    folder: Path,
    contexts: Sequence[int] = CONTEXTS,
    *,
    widths: Sequence[int] = WIDTHS,
    is_float: bool = False,
    share_weights: bool = False,
) -> None:
    """Write the three binaries into `folder`, with graphs for these context lengths.

    Args:
        widths: tokens of one pass. With 4, there are graphs that verify drafts.
        is_float: in float16, as AI Hub's precision w4.
        share_weights: see `write_binary`.
    """
    folder.mkdir(parents=True)
    for part in range(1, len(_PARTS) + 1):
        graphs = dict(_part_graphs(folder, part, contexts, widths, is_float))
        command = [
            sys.executable,
            "-m",
            "tests.support.npu.context_binary",
            *(["--share-weights"] if share_weights else []),
            str(folder / f"tiny_part_{part}_of_{len(_PARTS)}.bin"),
            *(f"{name}={graph}" for name, graph in graphs.items()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        for graph in graphs.values():
            graph.unlink()


def _part_graphs(
    folder: Path, part: int, contexts: Sequence[int], widths: Sequence[int], is_float: bool
) -> Iterator[tuple[str, Path]]:
    """Write the ONNX graphs of one part. Yields: name and file of each."""
    inputs, outputs = _PARTS[part - 1]
    for context in contexts:
        for width in widths:
            whole = build_graph(TinyDecoder(context=context), width, is_float=is_float)
            kind = TensorProto.FLOAT16 if is_float else TensorProto.UINT16
            model = _renamed(Extractor(_with_types(whole, width, kind)).extract_model(inputs, outputs))
            path = folder / f"{_PHASES[width]}_ar{width}_cl{context}_{part}_of_{len(_PARTS)}.onnx"
            onnx.save(model, path)
            yield path.stem, path


def _with_types(model: onnx.ModelProto, width: int, kind: int) -> onnx.ModelProto:
    """The model with the types of the tensors between its parts."""
    hidden = TinyDecoder().vocab_size  # the embedding is one-hot
    for name in _NAMES:
        value = onnx.helper.make_tensor_value_info(name, kind, [1, width, hidden])
        model.graph.value_info.append(value)
    return model


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the exporter's names of the tensors between the parts."""
    for value in (*model.graph.input, *model.graph.output):
        value.name = _NAMES.get(value.name, value.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = _NAMES.get(name, name)
    return model
