"""Runs tokens through one part of a model as the engine does: windows, then single steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Hidden = NDArray[np.float32]  # (tokens, hidden)


def cpu_session(path: str, *, exact: bool = False, mapped: bool = False) -> ort.InferenceSession:
    """A session of the CPU provider.

    Args:
        exact: no graph optimisation. With it, the provider has an error of 0.5 % on 4-bit blocks (measured).
        mapped: the weights stay in the mapped file, without a second copy in the order of the kernels. One layer of
            Llama 3.2 3B in float32, two sessions: 148 instead of 955 MB, and a tenth more time.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    if exact:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if mapped:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def relative_error(values: Hidden, reference: Hidden) -> float:
    """The mean of the errors of single tokens, so that one token with large values does not dominate.

    1e9 if a value is not finite, because JSON has no NaN.
    """
    errors = np.linalg.norm(values - reference, axis=1) / np.linalg.norm(reference, axis=1)
    error = float(errors.mean())
    return error if np.isfinite(error) else 1e9


def run_part(
    sessions: Sequence[ort.InferenceSession],
    inputs: Hidden,
    steps: int = 0,
    observe: Callable[[dict[str, Any]], None] = lambda outputs: None,
) -> Hidden:
    """The part's output for `inputs`, float32 (tokens, hidden).

    Args:
        sessions: the prompt graph and the step graph; or only the graph for batched steps. The batch then holds copies
            of one sequence, and the result has the rows of every copy.
        steps: the number of last tokens that go through the step graph.
        observe: called with the named outputs of each call, without padding rows.
    """
    prompt, step = sessions[0], sessions[-1]
    declared = {value.name: value for value in prompt.get_inputs()}
    hidden = next(name for name in declared if "hidden_states" in name)
    output = next(value.name for value in prompt.get_outputs() if "hidden_states" in value.name)
    dtype = np.float16 if declared[hidden].type == "tensor(float16)" else np.float32
    cache = {name: np.zeros(value.shape, dtype) for name, value in declared.items() if name.startswith("past_keys")}
    cache |= {name: np.zeros(value.shape, dtype) for name, value in declared.items() if name.startswith("past_values")}
    width, context = declared[hidden].shape[1], next(iter(cache.values())).shape[2]
    in_windows = len(inputs) - steps
    sequences = next(value.shape[0] for value in step.get_inputs() if value.name == "past_seq_len")
    calls = [(prompt, start, min(width, in_windows - start), width, 1) for start in range(0, in_windows, width)]
    calls += [(step, start, 1, 1, sequences) for start in range(in_windows, len(inputs))]
    results = []
    for session, start, count, tokens, copies in calls:
        window = np.zeros((tokens, inputs.shape[1]), dtype)
        window[:count] = inputs[start : start + count]
        feeds = {
            hidden: np.tile(window, (copies, 1))[None],
            "past_seq_len": np.full((copies, 1), start + tokens - 1, np.int32),
            "total_seq_len": np.array([context], np.int32),
        }
        names = [value.name for value in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds | cache), strict=True))
        cache = {name: outputs.pop(name.replace("past_", "present_")) for name in cache}
        observe({name: value[0, : count * copies] for name, value in outputs.items()})
        results.append(outputs[output][0, : count * copies])
    return np.concatenate(results).astype(np.float32)
