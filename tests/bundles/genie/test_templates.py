"""The templates of bundles without one: from prompt.json, and by family."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.genie.templates import fallback_template
from gateway.errors import BundleError
from gateway.generation import Chat, Message, Role
from gateway.text.templates import ChatTemplate
from tests.support.npu.genie_layouts import PROMPT_JSON

PHI = {
    "prompt_system": "<|system|> string <|end|>\n",
    "prompt_user": "<|user|> string <|end|>\n",
    "prompt_assistant": "<|assistant|> string <|end|>\n",
    "prompt_start": "<|assistant|>",
}
LLAMA2 = {
    "prompt_system": "<s>[INST] <<SYS>>string<</SYS>>[/INST]</s>",
    "prompt_user": "<s>[INST]string[/INST]</s>",
    "prompt_start": "<s>[INST]string[/INST] ",
}


def rendered(
    folder: Path, content: dict[str, Any], *turns: tuple[Role, str], begin: str = "", tokens: Iterable[str] = ()
) -> str:
    (folder / "prompt.json").write_text(json.dumps(content), encoding="utf-8")
    source = fallback_template(folder, "", tokens, begin)
    assert source is not None
    return ChatTemplate(source, {}).render(Chat(messages=tuple(Message(role=r, content=text) for r, text in turns)))


def test_message_replaces_the_word_string(tmp_path: Path) -> None:
    turns: tuple[tuple[Role, str], ...] = (("system", "Be brief."), ("user", "A string?"), ("assistant", "{{ no }}"))
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA string?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(tmp_path, PROMPT_JSON, *turns[:2]) == text
    more = "{{ no }}<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(tmp_path, PROMPT_JSON, *turns, ("tool", "4")) == text + more


def test_last_message_of_the_assistant_is_continued(tmp_path: Path) -> None:
    assert rendered(tmp_path, PHI, ("user", "Hi"), ("assistant", "Hel")) == "<|user|> Hi <|end|>\n<|assistant|> Hel"


def test_role_without_a_key_is_written_like_the_user(tmp_path: Path) -> None:
    assert rendered(tmp_path, PHI, ("tool", "4")) == "<|user|> 4 <|end|>\n<|assistant|>"


def test_start_with_a_message_replaces_the_last_turn(tmp_path: Path) -> None:
    assert rendered(tmp_path, LLAMA2, ("user", "A"), ("user", "B")) == "<s>[INST]A[/INST]</s><s>[INST]B[/INST] "


def test_begin_token_comes_once(tmp_path: Path) -> None:
    assert rendered(tmp_path, PHI, ("user", "A"), ("user", "B"), begin="<s>").startswith(
        "<s><|user|> A <|end|>\n<|user|>"
    )
    assert rendered(tmp_path, LLAMA2, ("user", "A"), begin="<s>") == "<s>[INST]A[/INST] "


def test_every_character_is_kept(tmp_path: Path) -> None:
    odd = '<\uff5chy_User\uff5c>\n string "quoted" \\ 😀 {{ x }} {% y %} \' \t\n'
    text = rendered(tmp_path, {"prompt_user": odd, "prompt_start": "<\uff5chy_Assistant\uff5c>"}, ("user", "Hi"))
    assert text == f"{odd.replace('string', 'Hi')}<\uff5chy_Assistant\uff5c>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"prompt_system": "string"}, "prompt_user"),
        ({"prompt_user": "<|user|>strings"}, "`prompt_user` in prompt.json lacks the word 'string'"),
        ({"prompt_user": 5}, "prompt_user"),
    ],
)
def test_file_without_text_for_a_message_is_refused(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    (tmp_path / "prompt.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=words):
        fallback_template(tmp_path, "", [], "")


def test_known_family_has_priority_if_the_file_writes_its_tokens(tmp_path: Path) -> None:
    turns: tuple[tuple[Role, str], ...] = (("user", "Hi"),)
    phi = ["<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
    assert rendered(tmp_path, PHI, *turns, tokens=phi) == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    own = {"prompt_user": "<|im_start|>string"}
    assert rendered(tmp_path, own, *turns, tokens=phi) == "<|im_start|>Hi"
    chosen = fallback_template(tmp_path, "llama", phi, "")
    assert chosen is not None and "<|start_header_id|>" in chosen


def test_folder_without_the_file_has_only_its_family(tmp_path: Path) -> None:
    assert fallback_template(tmp_path, "", ["<s>"], "<s>") is None
    assert fallback_template(tmp_path, "", ["<|im_start|>", "<|im_end|>"], "") is not None
