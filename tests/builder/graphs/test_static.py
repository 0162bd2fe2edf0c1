"""Static graphs: how the layers of a model are split into parts."""

from __future__ import annotations

from gateway.builder.graphs.static import split


def test_split_divides_layers_evenly() -> None:
    assert [part.layers for part in split(7, 3)] == [range(0, 2), range(2, 4), range(4, 7)]
    first, second, third = split(7, 3)
    assert (first.input, first.output) == ("input_hidden_states", second.input)
    assert (third.input, third.output) == (second.output, "output_hidden_states")
