"""A tiny decoder with the interface of the context binaries that AI Hub and Genie use. Tests compile it.

It has one layer, quantised like the published models: uint16 activations, int8 weights per output channel, uint8 keys
and values with zero point 128. Two graphs have the same cache layout, one for `width` tokens and one for one token:

    input_ids int32 (1, width) · attention_mask uint16 (1, 1, width, context)
    position_ids_cos/sin uint16 (1, 1, width, head_dim/2)
    past_key_0_in uint8 (heads, 1, head_dim, context - width)
    past_value_0_in uint8 (heads, 1, context - width, head_dim)
    -> logits uint16 (1, width, vocab) · past_key_0_out · past_value_0_out: the `width` new columns and rows

The host fills the cache from the left. The mask marks the valid columns, and the current tokens at the end. Compile in
a child process, because the emulator can crash its process:

    python -m tests.support.npu.tiny_htp_decoder FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.paths import ROOT

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Sequence[Array]]  # feeds -> (logits, new keys, new values)

PROMPT_WIDTH = 8
LAGS = (5, 13)
HTP_OPTIONS = {"htp_performance_mode": "burst", "soc_model": "60", "htp_arch": "73"}


@dataclass(frozen=True)
class Encoding:
    """Affine quantisation: value = (code - zero) * scale."""

    low: float
    high: float
    dtype: type[np.unsignedinteger[Any]] = np.uint16

    @property
    def scale(self) -> np.float32:
        return np.float32((self.high - self.low) / np.iinfo(self.dtype).max)

    @property
    def zero(self) -> Any:
        return self.dtype(round(-self.low / float(self.scale)))

    def quantise(self, values: Array) -> Array:
        codes = np.round(values / self.scale) + int(self.zero)
        return np.clip(codes, 0, np.iinfo(self.dtype).max).astype(self.dtype)


UNIT = Encoding(-1.0, 1.0)
HIDDEN = Encoding(-10.0, 10.0)
CACHE_LIMITS = (-8.0, 8.0 * 127 / 128)  # with these limits the zero point of uint8 is 128
HEADS = Encoding(*CACHE_LIMITS)
CACHE = Encoding(*CACHE_LIMITS, np.uint8)
MASK = Encoding(-500.0, 0.0)
LOGITS = Encoding(-64.0, 64.0)
INPUTS = {
    "attention_mask": MASK,
    "position_ids_cos": UNIT,
    "position_ids_sin": UNIT,
    "past_key_0_in": CACHE,
    "past_value_0_in": CACHE,
}


@dataclass(frozen=True)
class TinyDecoder:
    """Each token has two successors. The next token is the first successor of the token `LAGS[0]` positions back; if
    that token is odd, it is the second successor of the token `LAGS[1]` positions back.

    So a wrong cache row changes a greedy answer within a few tokens. The logits are far apart, so that the different
    rounding of the graphs never changes an answer.

    Args:
        stop_trigger: the token whose successor is `stop_id`.
        first_plain: other successors are ids from here on.
    """

    vocab_size: int = 128
    heads: int = 2
    head_dim: int = 128
    context: int = 128
    stop_id: int = 3
    stop_trigger: int = 4
    first_plain: int = 4
    seed: int = 7

    @cached_property
    def successors(self) -> Array:
        """The successors of each token at distance LAGS[0] (row 0) and LAGS[1] (row 1), (2, vocab)."""
        random = np.random.default_rng(self.seed)
        plain = np.arange(self.first_plain, self.vocab_size)
        successors = random.choice(plain, (len(LAGS), self.vocab_size))
        successors[:, self.first_plain :] = [random.permutation(plain) for _ in LAGS]
        successors[:, self.stop_trigger] = self.stop_id
        return successors

    @cached_property
    def weights(self) -> dict[str, Array]:
        one_hot = np.eye(self.vocab_size, dtype=np.float32)
        successors = np.concatenate([one_hot[row] for row in self.successors])
        strengths = [np.where(np.arange(self.vocab_size) % 2, 2, 6), np.full(self.vocab_size, 4)]
        queries = np.concatenate(
            [np.concatenate([np.cos(lag * self._speeds), -np.sin(lag * self._speeds)]) for lag in LAGS]
        )
        keys = np.tile(np.repeat([1.0, 0.0], self.head_dim // 2), self.heads)
        weights = {
            "embedding": one_hot,
            "q": np.tile(6 * queries, (self.vocab_size, 1)),
            "k": np.tile(6 * keys, (self.vocab_size, 1)),
            "v": np.concatenate([one_hot * strength for strength in strengths], axis=1),
            "o": successors,
            "head": 2 * one_hot,
        }
        return {name: np.asarray(weight, np.float32) for name, weight in weights.items()}

    @property
    def _speeds(self) -> Array:
        """Rotary angle per position of each pair of a head, radians."""
        return 1.0 / 10000.0 ** (np.arange(0, self.head_dim, 2) / self.head_dim)

    def graph(self, width: int) -> onnx.ModelProto:
        """The graph for `width` tokens."""
        return _Graph(self, width).build()

    def rotary(self, positions: Sequence[int]) -> tuple[Array, Array]:
        """Quantised cosines and sines, each (1, 1, len(positions), head_dim/2)."""
        angles = np.outer(positions, self._speeds).astype(np.float32)[None, None]
        return UNIT.quantise(np.cos(angles)), UNIT.quantise(np.sin(angles))

    def greedy(self, prompt_run: Run, step_run: Run, ids: Sequence[int], count: int) -> list[int]:
        """The `count` greedy tokens after `ids`: a plain decode loop over the two graphs."""
        cache = _Cache(self)
        for start in range(0, len(ids), PROMPT_WIDTH):
            chunk = ids[start : start + PROMPT_WIDTH]
            row = cache.append(prompt_run, PROMPT_WIDTH, chunk)
        answer = [int(row.argmax())]
        while len(answer) < count:
            answer.append(int(cache.append(step_run, 1, answer[-1:]).argmax()))
        return answer


class _Cache:
    """Keys and values of one sequence, filled from the left; rows 0..length-1 are valid."""

    def __init__(self, decoder: TinyDecoder) -> None:
        self.decoder = decoder
        self.length = 0
        shape = (decoder.heads, 1, decoder.head_dim, decoder.context)
        self.keys = np.full(shape, int(CACHE.zero), np.uint8)
        self.values = np.ascontiguousarray(self.keys.swapaxes(2, 3))

    def append(self, run: Run, width: int, ids: Sequence[int]) -> Array:
        """Append 1..width ids. Returns: the logits after the last one, (vocab,)."""
        context, used = self.decoder.context, len(ids)
        mask = np.full((1, 1, width, context), MASK.low, np.float32)
        for row in range(used):
            mask[..., row, : self.length] = 0
            mask[..., row, context - width : context - width + row + 1] = 0
        padding = [0] * (width - used)
        cosines, sines = self.decoder.rotary([self.length + row for row in range(used)] + padding)
        logits, keys, values = run(
            {
                "input_ids": np.array([[*ids, *padding]], np.int32),
                "attention_mask": MASK.quantise(mask),
                "position_ids_cos": cosines,
                "position_ids_sin": sines,
                "past_key_0_in": np.ascontiguousarray(self.keys[..., : context - width]),
                "past_value_0_in": np.ascontiguousarray(self.values[:, :, : context - width]),
            }
        )
        self.keys[..., self.length : self.length + used] = keys[..., :used]
        self.values[:, :, self.length : self.length + used] = values[:, :, :used]
        self.length += used
        return logits[0, used - 1]


@dataclass
class _Graph:
    """Builds a graph. A Quantize/Dequantize pair follows each node, as HTP needs it for 16-bit activations."""

    decoder: TinyDecoder
    width: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initialisers: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def build(self) -> onnx.ModelProto:
        for name, encoding in INPUTS.items():
            self._dequantise(name, encoding, f"{name}_real")
        hidden = self._embed()
        self._projected(hidden)
        keys = self._emit(
            "past_key_0_out", CACHE, self._node("Transpose", "k_turned", ["k_rotated"], perm=[1, 0, 3, 2])
        )
        values = self._emit("past_value_0_out", CACHE, self._node("Transpose", "v_turned", ["v"], perm=[1, 0, 2, 3]))
        attended = self._attend(keys, values)
        residual = self._op("Add", "residual", [self._linear("o", attended, HEADS), hidden], HIDDEN)
        self._emit("logits", LOGITS, self._node("MatMul", "head", [residual, self._weight("head")]))
        return self._model()

    def _embed(self) -> str:
        encoding = Encoding(-5.0, 5.0)
        self._constant("embedding_codes", encoding.quantise(self.decoder.weights["embedding"]))
        self._dequantise("embedding_codes", encoding, "embedding")
        return self._op("Gather", "hidden", ["embedding", "input_ids"], encoding, axis=0)

    def _projected(self, hidden: str) -> None:
        """Rotated q and k, and v, each (1, heads, width, head_dim)."""
        decoder = self.decoder
        shape = self._constant("by_head", np.array([1, self.width, decoder.heads, decoder.head_dim], np.int64))
        for name in "qkv":
            flat = self._linear(name, hidden, HEADS)
            split = self._op("Reshape", f"{name}_by_head", [flat, shape], HEADS)
            self._op("Transpose", name, [split], HEADS, perm=[0, 2, 1, 3])
        for name in "qk":
            self._rotate(name)

    def _rotate(self, name: str) -> None:
        cosine, sine = "position_ids_cos_real", "position_ids_sin_real"
        halves = self._constant("halves", np.array([self.decoder.head_dim // 2] * 2, np.int64))
        raw = [f"{name}_first_raw", f"{name}_second_raw"]
        self.nodes.append(helper.make_node("Split", [name, halves], raw, axis=-1, name=f"{name}_split"))
        first = self._recode(raw[0], HEADS, f"{name}_first")
        second = self._recode(raw[1], HEADS, f"{name}_second")
        products = {
            part: self._op("Mul", f"{name}_{part}", pair, HEADS)
            for part, pair in {
                "first_cos": [first, cosine],
                "second_sin": [second, sine],
                "second_cos": [second, cosine],
                "first_sin": [first, sine],
            }.items()
        }
        lower = self._op("Sub", f"{name}_lower", [products["first_cos"], products["second_sin"]], HEADS)
        upper = self._op("Add", f"{name}_upper", [products["second_cos"], products["first_sin"]], HEADS)
        self._op("Concat", f"{name}_rotated", [lower, upper], HEADS, axis=-1)

    def _attend(self, new_keys: str, new_values: str) -> str:
        """(1, width, heads * head_dim)"""
        decoder = self.decoder
        keys = self._op("Concat", "keys", ["past_key_0_in_real", new_keys], CACHE, axis=3)
        values = self._op("Concat", "values", ["past_value_0_in_real", new_values], CACHE, axis=2)
        queries = self._op("Transpose", "queries", ["q_rotated"], HEADS, perm=[1, 0, 2, 3])
        scores = self._op("MatMul", "scores", [queries, keys], Encoding(-2400.0, 2400.0))
        unit = Encoding(0.0, 1.0)
        self._constant("scaling_codes", unit.quantise(np.float32(decoder.head_dim**-0.5)))
        self._dequantise("scaling_codes", unit, "scaling")
        scaled = self._op("Mul", "scaled", [scores, "scaling"], Encoding(-220.0, 220.0))
        masked = self._op("Add", "masked", [scaled, "attention_mask_real"], Encoding(-720.0, 220.0))
        weights = self._op("Softmax", "weights", [masked], unit, axis=-1)
        mixed = self._op("MatMul", "mixed", [weights, values], HEADS)
        rows = self._op("Transpose", "rows", [mixed], HEADS, perm=[1, 2, 0, 3])
        shape = self._constant("flat", np.array([1, self.width, decoder.heads * decoder.head_dim], np.int64))
        return self._op("Reshape", "attended", [rows, shape], HEADS)

    def _linear(self, name: str, source: str, encoding: Encoding) -> str:
        return self._op("MatMul", f"{name}_projected", [source, self._weight(name)], encoding)

    def _weight(self, name: str) -> str:
        """int8 per output channel, symmetric"""
        weight = self.decoder.weights[name]
        scale = (np.maximum(np.abs(weight).max(axis=0), 1e-6) / 127).astype(np.float32)
        codes = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
        inputs = [
            self._constant(f"{name}_weight_codes", codes),
            self._constant(f"{name}_weight_scales", scale),
            self._constant(f"{name}_weight_zeros", np.zeros(scale.shape, np.int8)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_weight"], axis=1))
        return f"{name}_weight"

    def _node(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_raw"], name=name, **attributes))
        return f"{name}_raw"

    def _op(self, kind: str, name: str, inputs: Sequence[str], encoding: Encoding, **attributes: Any) -> str:
        return self._recode(self._node(kind, name, inputs, **attributes), encoding, name)

    def _recode(self, source: str, encoding: Encoding, name: str) -> str:
        return self._dequantise(self._quantise(source, encoding, f"{name}_codes"), encoding, name)

    def _emit(self, output: str, encoding: Encoding, source: str) -> str:
        """A graph output in its code; the name of the same values decoded."""
        return self._dequantise(self._quantise(source, encoding, output), encoding, f"{output}_real")

    def _quantise(self, source: str, encoding: Encoding, name: str) -> str:
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *self._code(encoding, name)], [name]))
        return name

    def _dequantise(self, source: str, encoding: Encoding, name: str) -> str:
        self.nodes.append(helper.make_node("DequantizeLinear", [source, *self._code(encoding, source)], [name]))
        return name

    def _code(self, encoding: Encoding, name: str) -> tuple[str, str]:
        scale = self._constant(f"{name}_scale", np.array(encoding.scale))
        return scale, self._constant(f"{name}_zero", np.array(encoding.zero))

    def _constant(self, name: str, value: Array) -> str:
        self.initialisers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _model(self) -> onnx.ModelProto:
        d, width = self.decoder, self.width
        past = d.context - width
        word, byte = TensorProto.UINT16, TensorProto.UINT8
        inputs = [
            ("input_ids", TensorProto.INT32, [1, width]),
            ("attention_mask", word, [1, 1, width, d.context]),
            ("position_ids_cos", word, [1, 1, width, d.head_dim // 2]),
            ("position_ids_sin", word, [1, 1, width, d.head_dim // 2]),
            ("past_key_0_in", byte, [d.heads, 1, d.head_dim, past]),
            ("past_value_0_in", byte, [d.heads, 1, past, d.head_dim]),
        ]
        outputs = [
            ("logits", word, [1, width, d.vocab_size]),
            ("past_key_0_out", byte, [d.heads, 1, d.head_dim, width]),
            ("past_value_0_out", byte, [d.heads, 1, width, d.head_dim]),
        ]
        graph = helper.make_graph(
            self.nodes,
            f"ar{width}_cl{d.context}_1_of_1",
            [helper.make_tensor_value_info(*tensor) for tensor in inputs],
            [helper.make_tensor_value_info(*tensor) for tensor in outputs],
            list(self.initialisers.values()),
        )
        opsets = [helper.make_opsetid("", 21)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def open_htp_session(path: Path, *, compile_to: Path | None = None) -> Run:
    """Open a graph or a compiled context on the emulated HTP without CPU fallback. Optionally write its context."""
    import onnxruntime
    import onnxruntime_qnn

    name = "QNNExecutionProvider"
    if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    device = next(device for device in onnxruntime.get_ep_devices() if device.ep_name == name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if compile_to:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(compile_to))
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    options.add_provider_for_devices([device], HTP_OPTIONS | backend)
    opened = onnxruntime.InferenceSession(str(path), options)
    return lambda feeds: opened.run(["logits", "past_key_0_out", "past_value_0_out"], dict(feeds))


def graph_name(width: int) -> str:
    return "prompt" if width > 1 else "token"


def build(folder: Path, decoder: TinyDecoder) -> None:
    """Write {prompt,token}.onnx, {prompt,token}_ctx.onnx and their context binaries into `folder`."""
    for width in (PROMPT_WIDTH, 1):
        source = folder / f"{graph_name(width)}.onnx"
        onnx.save(decoder.graph(width), str(source))
        open_htp_session(source, compile_to=source.with_name(f"{source.stem}_ctx.onnx"))


def context_binaries(folder: Path) -> list[Path]:
    """The context binaries of `folder`, prompt graph first."""
    return sorted(folder.glob("*_ctx_qnn.bin"))


def compile_in_child(folder: Path) -> list[Path]:
    """`build` in a child process. Returns: the context binaries, prompt graph first."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.support.npu.tiny_htp_decoder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and len(context_binaries(folder)) == 2, done.stdout + done.stderr
    return context_binaries(folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]), TinyDecoder())
