"""The binding to Genie, and what the library was found to do: each in a process of its own, on the emulated NPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.genie_config import load_genie_bundle
from gateway.errors import BundleError
from gateway.worker.genie.library import End, GenieDialog, Performance, Sentence
from tests.support.child_call import call_in_child
from tests.support.genie_bundle import END
from tests.support.tiny_htp_decoder import TinyDecoder, open_htp_session

IDS = [1, *((index * 37 + 11) % 96 + 5 for index in range(110))]


def opened(config: Path) -> closing[GenieDialog]:
    return closing(GenieDialog(load_genie_bundle(config).config))


def ask(dialog: GenieDialog, ids: Sequence[int], count: int, sentence: Sentence = Sentence.REWIND) -> list[int]:
    """`count` tokens, drawn greedily unless the dialog was told otherwise; the cache is used as it is."""
    answer: list[int] = []
    dialog.limit(count)
    dialog.query(ids, sentence, lambda tokens: answer.extend(tokens) or True)
    return answer


def be_greedy(dialog: GenieDialog) -> None:
    dialog.sample(temperature=1.0, top_k=1, top_p=1.0, seed=0)
    dialog.reset()


# -- the same tokens as our own loop ----------------------------------------------------------------------------------


def genie_answers(config: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    with opened(config) as dialog:
        be_greedy(dialog)
        answers = []
        for prompt in prompts:
            dialog.reset()
            answers.append(ask(dialog, prompt, 24))
        return answers


def own_answers(folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    prompt_run, step_run = open_htp_session(folder / "prompt_ctx.onnx"), open_htp_session(folder / "token_ctx.onnx")
    answers = [TinyDecoder().greedy(prompt_run, step_run, prompt, 24) for prompt in prompts]
    return [answer[: answer.index(END)] if END in answer else answer for answer in answers]


def test_greedy_tokens_equal_plain_decode_loop(genie_config: Path, context_folder: Path) -> None:
    prompts = [IDS[:16], IDS[20:40], IDS[:73], IDS[7:103]]
    expected = call_in_child(own_answers, context_folder, prompts)
    assert len({tuple(answer) for answer in expected}) == len(prompts)
    assert call_in_child(genie_answers, genie_config, prompts) == expected


# -- what the loop is built on ------------------------------------------------------------------------------------


def aborts(config: Path) -> dict[str, Any]:
    with opened(config) as dialog:
        be_greedy(dialog)
        whole = ask(dialog, IDS[:40], 12)
        dialog.reset()
        got: list[int] = []
        dialog.limit(12)
        end = dialog.query(IDS[:40], Sentence.REWIND, lambda tokens: got.extend(tokens) or len(got) < 4)
        try:
            dialog.query([*IDS[:30], 9, 9], Sentence.REWIND, lambda tokens: bool(1 // 0))
        except ZeroDivisionError as error:
            raised = str(error)
        dialog.reset()
        return {"whole": whole, "got": got, "end": end, "raised": raised, "after": ask(dialog, IDS[:40], 12)}


def test_an_answer_is_stopped_from_within_and_the_dialog_goes_on(genie_config: Path) -> None:
    seen = call_in_child(aborts, genie_config)
    assert seen["end"] is End.ABORTED
    assert seen["got"] == seen["whole"][:4]
    assert "zero" in seen["raised"]
    assert seen["after"] == seen["whole"]


def overflows(config: Path) -> tuple[End, bool]:
    with opened(config) as dialog:
        be_greedy(dialog)
        whole = ask(dialog, IDS[:90], 6)
        dialog.limit(6)
        end = dialog.query([index % 90 + 5 for index in range(90)], Sentence.REWIND, lambda tokens: True)
        dialog.reset()
        return end, ask(dialog, IDS[:90], 6) == whole


def test_more_than_the_context_holds_is_an_end_and_no_fault(genie_config: Path) -> None:
    assert call_in_child(overflows, genie_config) == (End.CONTEXT_EXCEEDED, True)


def draws(config: Path) -> dict[str, list[int]]:
    def draw(**settings: Any) -> list[int]:
        dialog.sample(**{"temperature": 2.0, "top_k": 0, "top_p": 1.0, "seed": 1} | settings)
        dialog.reset()
        return ask(dialog, IDS[:40], 12)

    with opened(config) as dialog:
        return {
            "one": draw(),
            "two": draw(seed=2),
            "greedy": draw(top_k=1),
            "one again": draw(),
            "narrow": draw(top_p=0.01),
            "cold": draw(temperature=0.0001),
            "far seed": draw(seed=2**31 - 1),
        }


def test_sampling_follows_seed_temperature_top_k_and_top_p(genie_config: Path) -> None:
    drawn = call_in_child(draws, genie_config)
    assert drawn["one"] == drawn["one again"]
    assert drawn["greedy"] == drawn["narrow"] == drawn["cold"]
    assert len({tuple(drawn[name]) for name in ("one", "two", "greedy", "far seed")}) == 4


def begins(config: Path) -> dict[str, bool]:
    with opened(config) as dialog:
        be_greedy(dialog)

        def fresh(ids: Sequence[int], sentence: Sentence) -> list[int]:
            dialog.reset()
            return ask(dialog, ids, 12, sentence)

        bare = IDS[1:10]
        return {
            "rewind adds it": fresh(bare, Sentence.REWIND) == fresh([1, *bare], Sentence.REWIND),
            "complete adds it": fresh(bare, Sentence.COMPLETE) == fresh([1, *bare], Sentence.REWIND),
        }


def test_a_rewinding_query_gets_no_begin_token_put_before_it(genie_config: Path) -> None:
    assert call_in_child(begins, genie_config) == {"rewind adds it": False, "complete adds it": True}


def computes_nothing_more(config: Path) -> tuple[list[int], list[int]]:
    with opened(config) as dialog:
        be_greedy(dialog)
        return ask(dialog, IDS[:40], 0), ask(dialog, IDS[:60], 4)


def test_a_limit_of_nothing_only_computes_the_prompt(genie_config: Path, context_folder: Path) -> None:
    nothing, answer = call_in_child(computes_nothing_more, genie_config)
    assert nothing == []
    assert answer == call_in_child(own_answers, context_folder, [IDS[:60]])[0][:4]


def performs(config: Path) -> str:
    with opened(config) as dialog:
        for performance in Performance:
            dialog.perform(performance)
        dialog.close()  # twice is once
    return "done"


def test_the_pace_can_be_set(genie_config: Path) -> None:
    assert call_in_child(performs, genie_config) == "done"


# -- what it refuses --------------------------------------------------------------------------------------------------


def refusals(config: Path) -> list[str]:
    def refusal(change: Any) -> str:
        changed = json.loads(json.dumps(load_genie_bundle(config).config))
        change(changed["dialog"])
        with pytest.raises(BundleError) as raised:
            GenieDialog(changed)
        return raised.value.message

    cut = config.parent / "cut.bin"
    cut.write_bytes((config.parent / "token_ctx_qnn.bin").read_bytes()[:-1])
    binaries = [str(config.parent / "prompt_ctx_qnn.bin"), str(cut)]
    return [
        refusal(lambda dialog: dialog.update(colour="blue")),
        refusal(lambda dialog: dialog["engine"].pop("n-threads")),
        refusal(lambda dialog: dialog["context"].update(size=256)),
        refusal(lambda dialog: dialog["engine"]["model"]["binary"].update({"ctx-bins": binaries})),
    ]


def test_a_refusal_carries_the_librarys_own_words(genie_config: Path) -> None:
    unknown, missing, context, cut = call_in_child(refusals, genie_config)
    assert "'colour'" in unknown
    assert "'n-threads'" in missing
    assert "context->size=256" in context
    assert "cut short, or was made for another chip" in cut
    assert all(str(genie_config.parent) not in refusal for refusal in (unknown, missing, context, cut))
