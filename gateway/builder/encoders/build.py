"""Builds the bundle of an encoder from a Hugging Face folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from tokenizers import Tokenizer

from gateway.builder.encoders.calibration import add_outputs, find_channels
from gateway.builder.encoders.config import EncoderSource
from gateway.builder.encoders.families.find import open_encoder
from gateway.builder.encoders.graph import EncoderGraph
from gateway.builder.encoders.linear import Channels, FloatLinear, Int8Linear
from gateway.builder.encoders.pooling import SentenceSettings, read_sentence_settings
from gateway.builder.encoders.static import static_lengths, write_static_graphs
from gateway.builder.graphs.writer import GraphWriter
from gateway.bundles.encoder.bundle import ENCODER_FILE, GRAPH_FILE, EncoderInfo
from gateway.bundles.json_file import LONGEST, read_json, read_optional_object
from gateway.bundles.stamp import Activations
from gateway.child import Progress
from gateway.errors import BundleError, cut

#: Attention needs memory for the square of the length: 16 heads and 2048 tokens take 270 MB.
_LONGEST = 2048


def write_encoder_files(
    source: Path, folder: Path, activations: Activations, progress: Progress, *, for_npu: bool = False
) -> None:
    """Write the graph, the tokenizer and encoder.json into `folder`, and the graphs for the NPU. Raises BundleError."""
    encoder, settings = open_encoder(source), read_sentence_settings(source)
    info = encoder_info(encoder, settings)
    _write_tokenizer(source, folder)
    if activations == "int8":
        channels = _calibrate(encoder, info, settings, folder, progress)
    with GraphWriter(folder / GRAPH_FILE) as graph:
        linear = Int8Linear(graph, channels) if activations == "int8" else FloatLinear(graph)
        EncoderGraph(encoder, info, settings, graph, linear).write(partial(progress, "writing the layers"))
        graph.note("activations", activations)
        graph.save(info.architecture)
    if for_npu and (lengths := static_lengths(encoder, info)):
        progress("writing the graphs for the NPU", 0.0)
        write_static_graphs(encoder, info, settings, folder, lengths)
        info = replace(info, lengths=lengths)
    (folder / ENCODER_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2))


def _calibrate(
    encoder: EncoderSource, info: EncoderInfo, settings: SentenceSettings, folder: Path, progress: Progress
) -> dict[str, Channels]:
    """What the inputs of the products are, by a float graph that is removed again."""
    path = folder / "float.onnx"
    with GraphWriter(path) as graph:
        linear = FloatLinear(graph)
        EncoderGraph(encoder, info, settings, graph, linear).write(partial(progress, "preparing the calibration"))
        add_outputs(graph, linear.inputs)
        graph.save(info.architecture)
    progress("calibrating", 0.0)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises a bare Exception
        raise BundleError(f"tokenizer.json cannot be read: {cut(str(error), 100)}. Download it again.") from error
    channels = find_channels(path, linear.inputs, tokenizer, info.longest)
    path.unlink()
    path.with_name(f"{path.name}.data").unlink()
    return channels


def encoder_info(encoder: EncoderSource, settings: SentenceSettings) -> EncoderInfo:
    """What the gateway and the worker need to know of the model."""
    config = encoder.config
    has_types = config.is_cross_encoder and encoder.has("types.weight") and len(encoder.tensor("types.weight")) > 1
    return EncoderInfo(
        kind="cross-encoder" if config.is_cross_encoder else "embedding",
        architecture=config.architecture,
        longest=min(settings.longest or config.longest, config.longest, _LONGEST),
        vocab=config.vocab,
        dimensions=len(settings.dense[-1].weight) if settings.dense else config.hidden,
        pooling=config.head_pooling if config.is_cross_encoder else settings.pooling,
        normalised=settings.normalised,
        has_types=has_types,
        lower_case=settings.lower_case,
        prefixes=settings.prefixes,
    )


def _write_tokenizer(source: Path, folder: Path) -> None:
    """Without the truncation and the padding that a tokenizer.json can have: the gateway cuts and pads itself."""
    content = read_json(source / "tokenizer.json", dict[str, Any], longest=LONGEST)
    content |= {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_bytes(msgspec.json.encode(content))
    config = read_optional_object(source / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(config))
