"""The binding to Genie and the behaviour of the library, in child processes on the emulated NPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.genie.bundle import load_genie_bundle
from gateway.errors import BundleError
from gateway.qnn.driver_errors import DRIVER_ERRORS
from gateway.worker.genie.library import GenieDialog, PerformancePolicy, QueryEnd, SentenceCode, _load_error
from tests.support.child_call import call_in_child
from tests.support.npu.genie_bundle import END
from tests.support.npu.htp_compile import open_htp_session
from tests.support.npu.tiny_htp_decoder import TinyDecoder

IDS = [1, *((index * 37 + 11) % 96 + 5 for index in range(110))]


def open_dialog(config: Path) -> closing[GenieDialog]:
    return closing(GenieDialog(load_genie_bundle(config).config))


def generate(
    dialog: GenieDialog, ids: Sequence[int], count: int, code: SentenceCode = SentenceCode.REWIND
) -> list[int]:
    """At most `count` tokens after `ids`, with the dialog's current sampler and cache."""
    answer: list[int] = []
    dialog.set_max_tokens(count)
    dialog.query(ids, code, lambda tokens: answer.extend(tokens) or True)
    return answer


def set_greedy(dialog: GenieDialog) -> None:
    dialog.set_sampler(temperature=1.0, top_k=1, top_p=1.0, seed=0)
    dialog.reset()


# -- the reference ----------------------------------------------------------------------------------------------------


def genie_answers(config: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    with open_dialog(config) as dialog:
        set_greedy(dialog)
        answers = []
        for prompt in prompts:
            dialog.reset()
            answers.append(generate(dialog, prompt, 24))
        return answers


def plain_loop_answers(folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    prompt_run, step_run = open_htp_session(folder / "prompt_ctx.onnx"), open_htp_session(folder / "token_ctx.onnx")
    answers = [TinyDecoder().greedy(prompt_run, step_run, prompt, 24) for prompt in prompts]
    return [answer[: answer.index(END)] if END in answer else answer for answer in answers]


def test_greedy_tokens_equal_plain_decode_loop(genie_config: Path, context_folder: Path) -> None:
    prompts = [IDS[:16], IDS[20:40], IDS[:73], IDS[7:103]]
    expected = call_in_child(plain_loop_answers, context_folder, prompts)
    assert len({tuple(answer) for answer in expected}) == len(prompts)
    assert call_in_child(genie_answers, genie_config, prompts) == expected


# -- behaviour that the loop relies on ----------------------------------------------------------------------------


def abort(config: Path) -> dict[str, Any]:
    with open_dialog(config) as dialog:
        set_greedy(dialog)
        whole = generate(dialog, IDS[:40], 12)
        dialog.reset()
        got: list[int] = []
        dialog.set_max_tokens(12)
        end = dialog.query(IDS[:40], SentenceCode.REWIND, lambda tokens: got.extend(tokens) or len(got) < 4)
        try:
            dialog.query([*IDS[:30], 9, 9], SentenceCode.REWIND, lambda tokens: bool(1 // 0))
        except ZeroDivisionError as error:
            raised = str(error)
        dialog.reset()
        return {"whole": whole, "got": got, "end": end, "raised": raised, "after": generate(dialog, IDS[:40], 12)}


def test_callback_aborts_query_and_dialog_continues(genie_config: Path) -> None:
    result = call_in_child(abort, genie_config)
    assert result["end"] is QueryEnd.ABORTED
    assert result["got"] == result["whole"][:4]
    assert "zero" in result["raised"]
    assert result["after"] == result["whole"]


def overflow(config: Path) -> tuple[QueryEnd, bool]:
    with open_dialog(config) as dialog:
        set_greedy(dialog)
        whole = generate(dialog, IDS[:90], 6)
        dialog.set_max_tokens(6)
        end = dialog.query([index % 90 + 5 for index in range(90)], SentenceCode.REWIND, lambda tokens: True)
        dialog.reset()
        return end, generate(dialog, IDS[:90], 6) == whole


def test_exceeded_context_ends_query_without_failure(genie_config: Path) -> None:
    assert call_in_child(overflow, genie_config) == (QueryEnd.CONTEXT_EXCEEDED, True)


def sample(config: Path) -> dict[str, list[int]]:
    def draw(**settings: Any) -> list[int]:
        dialog.set_sampler(**{"temperature": 2.0, "top_k": 0, "top_p": 1.0, "seed": 1} | settings)
        dialog.reset()
        return generate(dialog, IDS[:40], 12)

    with open_dialog(config) as dialog:
        return {
            "one": draw(),
            "two": draw(seed=2),
            "greedy": draw(top_k=1),
            "one again": draw(),
            "narrow": draw(top_p=0.01),
            "cold": draw(temperature=0.0001),
            "far seed": draw(seed=2**31 - 1),
        }


def test_sampler_settings_take_effect(genie_config: Path) -> None:
    drawn = call_in_child(sample, genie_config)
    assert drawn["one"] == drawn["one again"]
    assert drawn["greedy"] == drawn["narrow"] == drawn["cold"]
    assert len({tuple(drawn[name]) for name in ("one", "two", "greedy", "far seed")}) == 4


def add_begin_token(config: Path) -> dict[str, bool]:
    with open_dialog(config) as dialog:
        set_greedy(dialog)

        def fresh(ids: Sequence[int], code: SentenceCode) -> list[int]:
            dialog.reset()
            return generate(dialog, ids, 12, code)

        bare = IDS[1:10]
        return {
            "rewind": fresh(bare, SentenceCode.REWIND) == fresh([1, *bare], SentenceCode.REWIND),
            "complete": fresh(bare, SentenceCode.COMPLETE) == fresh([1, *bare], SentenceCode.REWIND),
        }


def test_only_complete_query_adds_begin_token(genie_config: Path) -> None:
    assert call_in_child(add_begin_token, genie_config) == {"rewind": False, "complete": True}


def prefill_only(config: Path) -> tuple[list[int], list[int]]:
    with open_dialog(config) as dialog:
        set_greedy(dialog)
        return generate(dialog, IDS[:40], 0), generate(dialog, IDS[:60], 4)


def test_limit_of_zero_tokens_only_computes_prompt(genie_config: Path, context_folder: Path) -> None:
    nothing, answer = call_in_child(prefill_only, genie_config)
    assert nothing == []
    assert answer == call_in_child(plain_loop_answers, context_folder, [IDS[:60]])[0][:4]


def set_policies(config: Path) -> str:
    with open_dialog(config) as dialog:
        for policy in PerformancePolicy:
            dialog.set_performance(policy)
        dialog.close()  # idempotent
    return "done"


def test_performance_policy_can_be_set(genie_config: Path) -> None:
    assert call_in_child(set_policies, genie_config) == "done"


# -- refusals ---------------------------------------------------------------------------------------------------------


def refuse(config: Path) -> list[str]:
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


@pytest.mark.parametrize("code", [1002, 1008, 5005, 14001])
def test_code_in_the_output_of_the_library_is_explained(code: int) -> None:
    output = f'[INFO] "Using create From Binary"\n[ERROR] "Could not create context from binary : err {code}"\n'
    message = _load_error(-1, output).message
    known = next(each for each in DRIVER_ERRORS if each.code == code)
    assert message.startswith("Genie does not load the model: general error; ") and message.endswith(known.sentence)


def test_refusal_contains_library_message(genie_config: Path) -> None:
    unknown, missing, context, cut = call_in_child(refuse, genie_config)
    assert "'colour'" in unknown
    assert "'n-threads'" in missing
    assert "context->size=256" in context
    assert "truncated, or it was made for another chip" in cut
    assert all(str(genie_config.parent) not in refusal for refusal in (unknown, missing, context, cut))
