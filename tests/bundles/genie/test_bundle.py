"""`load_genie_bundle`: the values, the search for files, the template, and each fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.genie.bundle import GenieBundle, load_genie_bundle
from gateway.errors import BundleError
from gateway.generation import Chat, Message
from gateway.text.templates import ChatTemplate
from tests.support.npu.genie_bundle import SPECIAL_TOKENS, write_genie_bundle
from tests.support.npu.genie_layouts import LAYOUTS, Change, Layout, write_layout

CHAT = Chat(
    messages=(Message(role="system", content="Be brief."), Message(role="user", content=" Hello ")),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """config.json of a bundle whose binaries contain no graphs."""
    binaries = [tmp_path / f"part_{index}_of_2.bin" for index in (1, 2)]
    for binary in binaries:
        binary.write_bytes(b"\x01" * 10_000)
    return write_genie_bundle(tmp_path / "models" / "tiny", binaries)


def changed(path: Path, change: Change) -> Path:
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config["dialog"])
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as raised:
        load_genie_bundle(path)
    assert str(path.parent.parent) not in raised.value.message  # messages contain no path of this machine
    return raised.value.message


def set_tokens(path: Path, specials: list[str]) -> None:
    tokens = [{"id": index, "content": content} for index, content in enumerate(specials)]
    (path.parent / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}), encoding="utf-8")


def prompt(bundle: GenieBundle) -> str:
    assert bundle.chat_template is not None
    return ChatTemplate(bundle.chat_template, bundle.tokenizer_config).render(CHAT)


def test_values_of_bundle_are_read(bundle: Path) -> None:
    read = load_genie_bundle(bundle)
    assert (read.context_length, read.prompt_width, read.usable_context) == (128, 8, 112)
    assert (read.vocab_size, read.bos_id, read.end_ids) == (128, 1, (3,))
    assert read.dialog_type == "basic"
    assert read.tokenizer_config == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_only_paths_sampler_and_polling_are_changed(bundle: Path) -> None:
    changed(bundle, lambda dialog: dialog["engine"]["backend"]["QnnHtp"].update(poll=True))
    before = json.loads(bundle.read_text(encoding="utf-8"))["dialog"]
    after = load_genie_bundle(bundle).config["dialog"]
    folder = bundle.parent
    assert after["tokenizer"].pop("path") == str(folder / "tokenizer.json")
    assert after["engine"]["backend"].pop("extensions") == str(folder / "htp_backend_ext_config.json")
    assert after["engine"]["model"]["binary"].pop("ctx-bins") == [str(folder / f"part_{i}_of_2.bin") for i in (1, 2)]
    assert after.pop("sampler")["top-k"] > 1  # a dialog that is created greedy stays greedy
    assert after["engine"]["backend"]["QnnHtp"].pop("poll") is False
    for table in (before["tokenizer"], before["engine"]["backend"], before["engine"]["model"]["binary"], before):
        for key in ("path", "extensions", "ctx-bins", "sampler"):
            table.pop(key, None)
    del before["engine"]["backend"]["QnnHtp"]["poll"]
    assert after == before


@pytest.mark.parametrize("written", [True, False])
def test_polling_is_as_configured_and_not_as_written(bundle: Path, written: bool) -> None:
    changed(bundle, lambda dialog: dialog["engine"]["backend"]["QnnHtp"].update(poll=written))
    for poll in (True, False):
        read = load_genie_bundle(bundle, poll=poll)
        assert read.config["dialog"]["engine"]["backend"]["QnnHtp"]["poll"] is poll


@pytest.mark.parametrize("context", [{"bos-token": -1}, {"bos-token": None}, {}], ids=str)
def test_library_gets_minus_one_for_no_begin_token(bundle: Path, context: dict[str, Any]) -> None:
    def change(dialog: dict[str, Any]) -> None:
        del dialog["context"]["bos-token"]
        dialog["context"].update(context)

    read = load_genie_bundle(changed(bundle, change))
    assert (read.bos_id, read.config["dialog"]["context"]["bos-token"]) == (None, -1)
    assert read.tokenizer_config == {"eos_token": "<|im_end|>"}


@pytest.mark.parametrize(("eot", "is_end"), [(2, True), (3, True), (100, False), (5000, False), (-1, False)])
def test_only_added_tokens_end_turns(bundle: Path, eot: int, is_end: bool) -> None:
    read = load_genie_bundle(changed(bundle, lambda dialog: dialog["context"].update({"eot-token": eot})))
    assert (eot in read.end_ids) is is_end
    assert ("eot-token" in read.config["dialog"]["context"]) is is_end
    assert read.end_ids[0] == 3


@pytest.mark.parametrize(
    "written",
    ["part_1_of_2.bin", "models\\tiny\\part_1_of_2.bin", "genie/python/part_1_of_2.bin", "C:\\old\\part_1_of_2.bin"],
)
def test_binary_is_found_for_each_form_of_its_path(bundle: Path, written: str) -> None:
    changed(bundle, lambda dialog: dialog["engine"]["model"]["binary"].update({"ctx-bins": [written]}))
    assert load_genie_bundle(bundle).binaries == (bundle.parent / "part_1_of_2.bin",)


def test_file_in_a_parent_folder_is_found(bundle: Path) -> None:
    extensions = bundle.parents[2] / "config" / "ext.json"
    extensions.parent.mkdir()
    extensions.write_text("{}", encoding="utf-8")
    changed(bundle, lambda dialog: dialog["engine"]["backend"].update(extensions="config\\ext.json"))
    assert load_genie_bundle(bundle).config["dialog"]["engine"]["backend"]["extensions"] == str(extensions)


@pytest.mark.parametrize("written", ["nowhere.json", "qai_libs\\nowhere.json", "", None])
def test_missing_extensions_are_left_out(bundle: Path, written: str | None) -> None:
    changed(bundle, lambda dialog: dialog["engine"]["backend"].update(extensions=written))
    assert "extensions" not in load_genie_bundle(bundle).config["dialog"]["engine"]["backend"]


def test_end_ids_combine_eos_and_eot(bundle: Path) -> None:
    changed(bundle, lambda dialog: dialog["context"].update({"eos-token": [3, 2], "eot-token": 2}))
    assert load_genie_bundle(bundle).end_ids == (3, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(type="kv-share"), "'kv-share'"),
        (lambda d: d.update(type="ssd-q1"), "ssd-q1"),
        (lambda d: d.pop("context"), "context"),
        (lambda d: d["context"].pop("size"), "size"),
        (lambda d: d["context"].update({"bos-token": -2}), "bos-token"),
        (lambda d: d["context"].update({"eos-token": []}), "eos-token"),
        (lambda d: d["context"].update({"n-vocab": "many"}), "n-vocab"),
        (lambda d: d["context"].update({"eos-token": -1}), "eos-token"),
        (lambda d: d.update(engine=[d["engine"]]), "engine"),
        (lambda d: d["engine"]["backend"].update(type="QnnGenAiTransformer"), "QnnGenAiTransformer"),
        (lambda d: d["engine"]["backend"].update(extensions=5), "extensions"),
        (lambda d: d["engine"]["model"]["binary"].update({"ctx-bins": []}), "ctx-bins"),
        (lambda d: d["engine"]["model"]["binary"].update({"ctx-bins": ["a\\gone.bin"]}), "context binary 'gone.bin'"),
        (lambda d: d["tokenizer"].update(path="gone/tokenizer2.json"), "tokenizer 'tokenizer2.json'"),
        (lambda d: d["tokenizer"].update(path="t" * 5000), "cannot be read"),
        (lambda d: d["engine"]["model"]["binary"].update({"ctx-bins": ["b" * 300]}), "cannot be read"),
    ],
)
def test_faulty_configuration_names_the_key(bundle: Path, change: Change, words: str) -> None:
    assert words in refusal(changed(bundle, change))


def test_configuration_that_is_missing_or_not_json_is_refused(bundle: Path) -> None:
    bundle.write_text('{"dialog": ', encoding="utf-8")
    assert "config.json cannot be read: " in refusal(bundle)
    bundle.unlink()
    assert "no Genie configuration at config.json" in refusal(bundle)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_read_from_the_folder_of_its_archive(tmp_path: Path, layout: Layout) -> None:
    binary = tmp_path / "tiny_part_1_of_1.bin"
    binary.write_bytes(b"\x01" * 10_000)
    config = write_layout(tmp_path / "models" / "tiny", layout, [binary])
    read = load_genie_bundle(tmp_path / "models" / "tiny")
    assert read.folder == config.parent
    assert (read.bos_id, read.end_ids, read.context_length) == (1, (3,), 128)
    assert read.binaries == (config.parent / binary.name,)
    assert read.prompt_width == (32 if layout == "aidevhome" else 8)  # a fourth of the context if it is unknown
    assert prompt(read).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "part_1_of_2.bin is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        (b"\x01" * 500_000 + bytes(20_000), "its download was not finished"),
    ],
)
def test_incomplete_binary_is_refused(bundle: Path, content: bytes, words: str) -> None:
    (bundle.parent / "part_1_of_2.bin").write_bytes(content)
    assert words in refusal(bundle)


def test_binary_padded_with_zeros_is_accepted(bundle: Path) -> None:
    (bundle.parent / "part_1_of_2.bin").write_bytes(b"\x01" * 100_000 + bytes(4095))
    assert load_genie_bundle(bundle)


def test_tokenizer_that_is_not_json_is_refused(bundle: Path) -> None:
    (bundle.parent / "tokenizer.json").write_text("no", encoding="utf-8")
    assert "tokenizer.json cannot be read" in refusal(bundle)


def test_byte_order_mark_is_accepted(bundle: Path) -> None:
    bundle.write_bytes(b"\xef\xbb\xbf" + bundle.read_bytes())
    assert load_genie_bundle(bundle)


def test_prompt_width_without_metadata_is_estimated(bundle: Path) -> None:
    (bundle.parent / "metadata.json").unlink()
    assert load_genie_bundle(bundle).prompt_width == 32
    changed(bundle, lambda dialog: dialog["context"].update(size=4096))
    assert load_genie_bundle(bundle).usable_context == 4096 - 2 * 128


def test_ssd_bundle_needs_its_forecast_prefix(bundle: Path) -> None:
    forecast = bundle.parent / "kv-cache.primary.qnn-htp"
    table = {"forecast-prefix-name": "genie\\models\\Qwen\\"}
    changed(bundle, lambda dialog: dialog.update({"type": "ssd-q1", "ssd-q1": table}))
    assert "forecast prefix 'Qwen'" in refusal(bundle)
    forecast.write_bytes(b"\x01")
    read = load_genie_bundle(bundle)
    assert read.dialog_type == "ssd-q1"
    assert read.config["dialog"]["ssd-q1"]["forecast-prefix-name"] == str(bundle.parent)


def test_stop_sequences_end_answers_as_tokens_or_texts(bundle: Path) -> None:
    stops = ["<|im_end|>", "<|endoftext|>", "end_of_role", "", "###"]
    changed(bundle, lambda dialog: dialog.update({"stop-sequence": stops}))
    read = load_genie_bundle(bundle)
    assert (read.end_ids, read.end_strings) == ((3, 2), ("end_of_role", "###"))


@pytest.mark.parametrize(("written", "limit"), [(64, 64), (0, None), (-1, None)])
def test_limit_of_an_answer_is_read(bundle: Path, written: int, limit: int | None) -> None:
    assert load_genie_bundle(bundle).max_tokens is None
    changed(bundle, lambda dialog: dialog.update({"max-num-tokens": written}))
    assert load_genie_bundle(bundle).max_tokens == limit


@pytest.mark.parametrize(
    ("written", "sampling"),
    [
        (
            {"version": 1, "seed": 42, "temp": 0.6, "top-k": 40, "top-p": 0.95},
            {"temperature": 0.6, "top_k": 40, "top_p": 0.95},
        ),
        ({"version": 1, "seed": 42, "temp": 0.0, "top-k": 1, "greedy": True}, {"temperature": 0.0, "top_k": 1}),
        ({"temp": 3.0, "top-k": -1, "top-p": "much"}, {}),
        (None, {}),
    ],
)
def test_sampler_is_a_recommendation(bundle: Path, written: dict[str, Any] | None, sampling: dict[str, float]) -> None:
    changed(bundle, lambda dialog: dialog.pop("sampler") if written is None else dialog.update(sampler=written))
    assert load_genie_bundle(bundle).sampling == sampling


def test_own_template_has_priority_over_prompt_file(bundle: Path) -> None:
    content = {"prompt_user": "USER string\n", "prompt_start": "MODEL "}
    (bundle.parent / "prompt.json").write_text(json.dumps(content), encoding="utf-8")
    assert prompt(load_genie_bundle(bundle)) == "USER Be brief.\nUSER  Hello \nMODEL "
    assert "<|im_start|>" in prompt(load_genie_bundle(bundle, "qwen"))
    (bundle.parent / "tokenizer_config.json").write_text('{"chat_template": "mine"}', encoding="utf-8")
    assert prompt(load_genie_bundle(bundle)) == "mine"


@pytest.mark.parametrize("adds", [True, False])
def test_prompt_file_begins_as_the_tokenizer_does(bundle: Path, adds: bool) -> None:
    (bundle.parent / "prompt.json").write_text('{"prompt_user": "USER string"}', encoding="utf-8")
    tokenizer = json.loads((bundle.parent / "tokenizer.json").read_text(encoding="utf-8"))
    begin = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}] if adds else []
    tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": [*begin, {"Sequence": {"id": "A"}}]}
    (bundle.parent / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert prompt(load_genie_bundle(bundle)).startswith("<|im_start|>USER Be" if adds else "USER Be")
    changed(bundle, lambda dialog: dialog["context"].update({"bos-token": -1}))
    assert prompt(load_genie_bundle(bundle)).startswith("USER Be")


def test_own_template_has_priority_over_family_template(bundle: Path) -> None:
    assert "<|im_start|>" in prompt(load_genie_bundle(bundle))
    (bundle.parent / "tokenizer_config.json").write_text('{"chat_template": "mine"}', encoding="utf-8")
    assert prompt(load_genie_bundle(bundle)) == "mine"
    (bundle.parent / "chat_template.jinja").write_text("still more mine", encoding="utf-8")
    assert prompt(load_genie_bundle(bundle)) == "still more mine"


@pytest.mark.parametrize(
    ("specials", "expected"),
    [
        (
            list(SPECIAL_TOKENS),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hello <|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            ["", "<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"],
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            ["<|start_of_role|>", "<|end_of_role|>"],
            "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
            "<|start_of_role|>user<|end_of_role|> Hello <|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
        (["<|user|>", "<|end|>"], "<|system|>\nBe brief.<|end|>\n<|user|>\n Hello <|end|>\n<|assistant|>\n"),
    ],
)
def test_special_tokens_select_family_template(bundle: Path, specials: list[str], expected: str) -> None:
    set_tokens(bundle, specials)
    assert prompt(load_genie_bundle(bundle)) == expected


def test_unknown_family_needs_a_dialect_for_a_template(bundle: Path) -> None:
    set_tokens(bundle, ["<a>", "<b>"])
    assert load_genie_bundle(bundle).chat_template is None
    assert load_genie_bundle(bundle, "plain").chat_template is None
    assert "<|im_start|>" in prompt(load_genie_bundle(bundle, "qwen"))
