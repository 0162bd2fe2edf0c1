"""The graphs of published models: their names in all forms, missing graphs, and graphs that do not fit together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.errors import BundleError
from gateway.qnn.binary_info import Graph, Tensor
from gateway.qnn.chains import Chains, Part, chains_of

HEADS, SIZE, HIDDEN, VOCAB = 2, 4, 6, 10
CACHE = ("uint8", 0.5, 128)


def graphs(part: int, width: int, context: int, name: str) -> Graph:
    """Part 1 is an embedding; part 2 has the layers and the head."""
    hidden = Tensor("hidden", (1, width, HIDDEN), "uint16", 0.1, 3)
    if part == 1:
        return Graph(name, (Tensor("input_ids", (1, width), "int32"),), (hidden,))
    past, new = context - width, width
    inputs = (
        Tensor("past_value_0_in", (HEADS, 1, past, SIZE), *CACHE),
        Tensor("past_key_0_in", (HEADS, 1, SIZE, past), *CACHE),
        Tensor("position_ids_sin", (1, 1, width, SIZE // 2), "uint16", 0.01, 9),
        Tensor("position_ids_cos", (1, 1, width, SIZE // 2), "uint16", 0.01, 9),
        Tensor("attention_mask", (1, 1, width, context), "uint16", 0.02, 65535),
        hidden,
    )
    outputs = (
        Tensor("logits", (1, width, VOCAB), "uint16", 0.3, 7),
        Tensor("past_key_0_out", (HEADS, 1, SIZE, new), *CACHE),
        Tensor("past_value_0_out", (HEADS, 1, new, SIZE), *CACHE),
    )
    return Graph(name, inputs, outputs)


def model(form: str = "{phase}_ar{width}_cl{context}_{part}_of_2", contexts: tuple[int, ...] = (16, 32)) -> list[Part]:
    return list(_model(form, contexts))


def _model(form: str, contexts: tuple[int, ...]) -> Iterator[Part]:
    for part in (1, 2):
        for context in contexts:
            for width, phase in ((8, "prompt"), (1, "token")):
                name = form.format(phase=phase, width=width, context=context, part=part)
                yield Part(graphs(part, width, context, name), Path(f"{part}.bin"))


def chains(parts: list[Part]) -> list[Chains]:
    return chains_of([(part, int(part.binary.stem)) for part in parts], "m")


@pytest.mark.parametrize(
    ("form", "contexts"),
    [
        ("{phase}_ar{width}_cl{context}_{part}_of_2", (16, 32)),
        ("ar{width}_cl{context}_{part}_of_2", (32, 16)),
        ("{phase}_{part}_of_2", (32,)),
        ("{phase}", (32,)),
        ("{phase}_{context}", (16, 32)),  # the embedding's graph fits every context
    ],
)
def test_graphs_are_found_under_every_form_of_name(form: str, contexts: tuple[int, ...]) -> None:
    found = chains(model(form, contexts))
    assert [chain.context for chain in found] == sorted(contexts)
    for chain in found:
        assert (chain.width, chain.layers) == (8, 1)
        assert [part.binary.stem for part in chain.parts] == ["1", "2", "1", "2"]
        masks = [
            tensor.shape for part in chain.parts for tensor in part.graph.inputs if tensor.name == "attention_mask"
        ]
        assert masks == [(1, 1, 8, chain.context), (1, 1, 1, chain.context)]
    assert found[0].tensor("logits").scale == 0.3


def narrow(*contexts: int, width: int = 4) -> list[Part]:
    return [
        Part(graphs(part, width, context, f"ar{width}_cl{context}_{part}_of_2"), Path(f"{part}.bin"))
        for part in (1, 2)
        for context in contexts
    ]


def test_widest_graph_that_every_context_has_is_used() -> None:
    found = chains([*model(), *narrow(16)])
    assert {chain.width for chain in found} == {8} and {chain.narrow_width for chain in found} == {0}


def test_narrow_graphs_of_every_context_verify_drafts() -> None:
    found = chains([*model(), *narrow(16, 32), *narrow(16, 32, width=2)])
    assert [(chain.width, chain.narrow_width, len(chain.narrow), len(chain.parts)) for chain in found] == 2 * [
        (8, 2, 2, 6)
    ]


def test_narrow_graphs_that_do_not_fit_are_not_used() -> None:
    """The model runs without them."""
    whole = narrow(16, 32)
    last_row = [_with(part, "logits", shape=(1, 1, VOCAB)) for part in whole]
    other_scale = [_with(part, "logits", scale=0.4) for part in whole]
    for extra in (whole[1:], last_row, other_scale):
        assert [(chain.narrow_width, chain.narrow) for chain in chains([*model(), *extra])] == 2 * [(0, ())]


def _with(part: Part, tensor: str, **fields: object) -> Part:
    outputs = (replace(each, **fields) if each.name == tensor else each for each in part.graph.outputs)  # type: ignore[arg-type]
    return replace(part, graph=replace(part.graph, outputs=tuple(outputs)))


def without(name: str) -> list[Part]:
    return [part for part in model() if part.graph.name != name]


def changed(graph: str, tensor: str, **fields: object) -> list[Part]:
    """The model with another tensor in one graph; `name=None` removes the tensor."""

    def other(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        new = (replace(item, **fields) if item.name == tensor else item for item in tensors)  # type: ignore[arg-type]
        return tuple(item for item in new if item.name is not None)

    return [
        replace(part, graph=Graph(graph, other(part.graph.inputs), other(part.graph.outputs)))
        if part.graph.name == graph
        else part
        for part in model()
    ]


def everywhere(tensor: str, **fields: object) -> list[Part]:
    """The model with another tensor in all graphs."""
    names = [part.graph.name for part in model()]
    return [next(part for part in changed(name, tensor, **fields) if part.graph.name == name) for name in names]


STEP, PROMPT = "token_ar1_cl32_2_of_2", "prompt_ar8_cl16_2_of_2"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (without("token_ar1_cl32_1_of_2"), "part 1 has no graph of width 1 for a context of 32 tokens"),
        (without(STEP), "part 2 has no graph of width 1 for a context of 32 tokens"),
        (
            [part for part in model() if "prompt" in part.graph.name],
            "for each context length, and have prompt_ar8_cl16_1_of_2",
        ),
        ([*model(), model()[-1]], "do the same"),
        (changed(STEP, "hidden", name="other"), "other of token_ar1_cl32_2_of_2 is provided by no other graph"),
        (changed(STEP, "hidden", zero_point=4), "hidden of token_ar1_cl32_2_of_2 has another type or scale"),
        (changed(STEP, "hidden", dtype="uint8"), "hidden of token_ar1_cl32_2_of_2 has another type or scale"),
        (changed(STEP, "hidden", shape=(1, 1, 7)), "hidden of token_ar1_cl32_2_of_2 has the unexpected shape"),
        (changed(STEP, "past_key_0_in", shape=(2, 1, 4, 30)), r"past_key_0_in .* shape \[2, 1, 4, 30\] \(uint8\)"),
        (changed(STEP, "past_key_0_out", zero_point=0), "past_key_0_in of token_ar1_cl32_2_of_2 has the unexpected"),
        (changed(STEP, "past_value_0_out", name=None), "past_value_0_in of token_ar1_cl32_2_of_2 has the unexpected"),
        (changed(STEP, "position_ids_cos", shape=(1, 1, 2, 2)), "position_ids_cos of token_ar1_cl32_2_of_2 has"),
        (changed(STEP, "logits", name="scores"), "logits of token_ar1_cl32_2_of_2 is missing"),
        (changed(PROMPT, "logits", shape=(1, 3, 10)), "logits of prompt_ar8_cl16_2_of_2 has 3 rows"),
        (changed(PROMPT, "logits", name="hidden"), "hidden of prompt_ar8_cl16_2_of_2 is an output of an earlier part"),
        (changed(STEP, "logits", scale=0.4), "logits has another scale in token_ar1_cl32_2_of_2"),
        (changed(PROMPT, "attention_mask", scale=None), "attention_mask of prompt_ar8_cl16_2_of_2 has no scale"),
        (everywhere("logits", scale=-0.3), r"logits of prompt_ar8_cl16_2_of_2 has the scale -0.3"),
        (everywhere("logits", scale=0.0), "logits of prompt_ar8_cl16_2_of_2 has the scale 0"),
        (everywhere("logits", scale=math.inf), "logits of prompt_ar8_cl16_2_of_2 has the scale inf"),
        (everywhere("attention_mask", zero_point=0), "has no value below 0, so it hides no token"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_graphs_that_do_not_fit_are_refused(parts: list[Part], message: str) -> None:
    with pytest.raises(BundleError, match=f"m: .*{message}"):
        chains(parts)
