"""Writes the `decoder` section of genai_config.json for our graphs of fixed shape: the pipeline of stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.builder.graphs.static import PROMPT, VERIFY, Part, graph_stem
from gateway.qnn.compile import compiled_name

_INPUTS = {
    "input_ids": "input_ids",
    "past_key_names": "past_keys_%d",
    "past_value_names": "past_values_%d",
    "past_sequence_length": "past_seq_len",
    "total_sequence_length": "total_seq_len",
}
_OUTPUTS = {
    "logits": "logits",
    "present_key_names": "present_keys_%d",
    "present_value_names": "present_values_%d",
}


class StaticLayout(Struct, frozen=True, kw_only=True):
    """The graphs of one bundle. `widths`: name of a graph -> tokens. `soc`: the chip number, None if unknown."""

    parts: Sequence[Part]
    contexts: Sequence[int]
    widths: Mapping[str, int]
    soc: int | None

    def decoder(self, names: Sequence[str], context: int, up: str = "") -> dict[str, Any]:
        """The section for the graphs `names` of one context length. `up`: the path from its folder to the files."""
        width = self.widths.get(names[0], self.widths[PROMPT])
        window = {"window_size": width, "pad_value": 0, "alignment": "left", "slide_key_value_cache": False}
        return {
            "inputs": _INPUTS,
            "outputs": _OUTPUTS,
            "sliding_window": window,
            "pipeline": list(self._pipeline(names, context, up)),
        }

    def _pipeline(self, names: Sequence[str], context: int, up: str) -> Iterator[dict[str, Any]]:
        first, last = self.parts[0].input, self.parts[-1].output
        yield {"embeddings": _stage(f"{up}embeddings.onnx", ["input_ids"], [first])}
        for name in names:
            for part in self.parts:
                file = up + compiled_name(Path(f"{graph_stem(name, part, context, self.contexts)}.onnx"))
                yield {f"{name}{part.suffix}": self._layers(file, part, is_prompt=name in (PROMPT, VERIFY))}
        yield {"lm_head": _stage(f"{up}lm_head.onnx", [last], ["logits"]) | {"is_lm_head": True}}

    def _layers(self, file: str, part: Part, *, is_prompt: bool) -> dict[str, Any]:
        cache = [f"{kind}_{index}" for index in part.layers for kind in ("keys", "values")]
        inputs = [part.input, "past_seq_len", "total_seq_len", *(f"past_{name}" for name in cache)]
        outputs = [part.output, *(f"present_{name}" for name in cache)]
        soc = {"soc_model": str(self.soc)} if self.soc else {}
        npu = {"backend_path": "QnnHtp.dll", "htp_performance_mode": "burst"} | soc
        return _stage(file, inputs, outputs) | {
            "run_on_prompt": is_prompt,
            "run_on_token_gen": not is_prompt,
            "session_options": {"provider_options": [{"qnn": npu}]},
        }


def _stage(filename: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    return {"filename": filename, "inputs": inputs, "outputs": outputs}
