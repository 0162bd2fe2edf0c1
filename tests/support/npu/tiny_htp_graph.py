"""Builds the ONNX graphs of the tiny decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.npu.tiny_htp_decoder import CACHE, HEADS, HIDDEN, INPUTS, LOGITS, Array, Encoding, TinyDecoder


def build_graph(decoder: TinyDecoder, width: int, *, is_float: bool = False) -> onnx.ModelProto:
    """The graph for `width` tokens. `is_float`: everything is float16, and nothing is quantised."""
    return _Graph(decoder, width, is_float).build()


@dataclass
class _Graph:
    """Builds a graph. A Quantize/Dequantize pair follows each node, as HTP needs it for 16-bit activations."""

    decoder: TinyDecoder
    width: int
    is_float: bool
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
        self._values("embedding_codes", encoding, self.decoder.weights["embedding"])
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
        self._values("scaling_codes", unit, np.float32(decoder.head_dim**-0.5))
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
        if self.is_float:
            return self._constant(f"{name}_weight", weight.astype(np.float16))
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

    def _values(self, name: str, encoding: Encoding, values: Array) -> str:
        return self._constant(name, values.astype(np.float16) if self.is_float else encoding.quantise(values))

    def _identity(self, source: str, name: str) -> str:
        self.nodes.append(helper.make_node("Identity", [source], [name]))
        return name

    def _quantise(self, source: str, encoding: Encoding, name: str) -> str:
        if self.is_float:
            return self._identity(source, name)
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *self._code(encoding, name)], [name]))
        return name

    def _dequantise(self, source: str, encoding: Encoding, name: str) -> str:
        if self.is_float:
            return self._identity(source, name)
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
        if self.is_float:
            word = byte = TensorProto.FLOAT16
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
