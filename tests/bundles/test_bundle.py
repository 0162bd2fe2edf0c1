"""`load_bundle` and `check_graph_files` for our bundles, for pipelines of other exporters, and for each fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from gateway.bundles.bundle import load_bundle
from gateway.bundles.genai_config import Inputs, Search, SlidingWindow, Stage
from gateway.bundles.graph_files import check_graph_files
from gateway.errors import BundleError
from tests.support.tiny import CHATML


@pytest.fixture
def bundle(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, which a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "genai_config.json") -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_config_of_our_bundle(tiny: Path) -> None:
    bundle = load_bundle(tiny)
    config = bundle.config
    assert (config.model_type, config.vocab_size, config.context_length) == ("llama", 384, 512)
    assert (config.eos_ids, config.bos_id, config.pad_id) == ((2, 0), 1, 2)
    assert (config.search.temperature, config.search.top_p, config.search.top_k) == (0.7, 0.9, None)
    assert config.search.past_present_share_buffer
    decoder = config.decoder
    assert (decoder.num_hidden_layers, decoder.num_key_value_heads, decoder.head_size) == (2, 2, 16)
    assert decoder.inputs == Inputs() and not decoder.stages
    assert decoder.session_options.providers == {}
    assert bundle.graph_paths == (tiny / "model.onnx",)
    assert bundle.chat_template == CHATML


def test_config_of_smollm2_bundle(smollm2: Path) -> None:
    bundle = load_bundle(smollm2)
    assert (bundle.config.vocab_size, bundle.config.context_length, bundle.config.eos_ids) == (49152, 8192, (2, 0))
    assert bundle.chat_template is not None and "SmolLM" in bundle.chat_template
    assert "Apache License" in (smollm2 / "LICENSE").read_text(encoding="utf-8")


def test_unknown_keys_are_ignored_and_eos_may_be_one_id(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["future"] = {"x": 1}
        content["model"] |= {"eos_token_id": 7, "vision": {}}
        content["model"]["decoder"] |= {"layer_types": ["full"], "head_size": 16}
        content["search"]["num_beams"] = 1

    edit(bundle, change)
    assert load_bundle(bundle).config.eos_ids == (7,)


@pytest.mark.parametrize(("pad", "expected"), [([5, 7], 5), ([], None), (None, None), (4, 4)])
def test_first_padding_token_of_list_is_used(bundle: Path, pad: Any, expected: int | None) -> None:
    edit(bundle, lambda content: content["model"].update(pad_token_id=pad))
    assert load_bundle(bundle).config.pad_id == expected


def test_chat_templates_from_named_list_or_files(bundle: Path) -> None:
    def templates() -> tuple[str | None, str | None]:
        loaded = load_bundle(bundle)
        return loaded.chat_template, loaded.tool_template

    named = [{"name": name, "template": name[0]} for name in ("rag", "tool_use", "default")]
    edit(bundle, lambda content: content.update(chat_template=named), "tokenizer_config.json")
    assert templates() == ("d", "t")
    edit(
        bundle, lambda content: content.update(chat_template={"default": "D", "tool_use": "T"}), "tokenizer_config.json"
    )
    assert templates() == ("D", "T")
    edit(bundle, lambda content: content.update(chat_template=named[1:2]), "tokenizer_config.json")
    assert templates() == ("t", "t")
    more = bundle / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("with tools", encoding="utf-8")
    (bundle / "chat_template.jinja").write_text("ä", encoding="utf-8-sig")
    assert templates() == ("ä", "with tools")
    (more / "tool_use.jinja").unlink()
    assert templates() == ("ä", None)
    (bundle / "chat_template.jinja").unlink()
    (bundle / "tokenizer_config.json").unlink()
    assert templates() == (None, None)
    (bundle / "chat_template.json").write_text('{"chat_template": "of a processor"}', encoding="utf-8")
    assert templates() == ("of a processor", None)


def test_tokenizer_dir_is_used(bundle: Path) -> None:
    (bundle / "text").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bundle / name).rename(bundle / "text" / name)
    edit(bundle, lambda content: content["model"].update(tokenizer_dir="text"))
    loaded = load_bundle(bundle)
    assert loaded.tokenizer_path == bundle / "text" / "tokenizer.json"
    assert loaded.chat_template == CHATML


def test_configured_tokenizer_folder_is_used(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    with pytest.raises(BundleError, match=r"model: .* key `tokenizer`, text, has no tokenizer.json"):
        load_bundle(bundle, str(text))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bundle / name).rename(text / name)
    loaded = load_bundle(bundle, str(text))
    assert loaded.tokenizer_path == text / "tokenizer.json"
    assert loaded.chat_template == CHATML


def test_backslashes_in_paths_are_separators(pipeline: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["tokenizer_dir"] = ".\\text"
        content["model"]["decoder"]["pipeline"][0]["embeddings"]["filename"] = "graphs\\embeddings.onnx"

    (pipeline / "text").mkdir()
    (pipeline / "tokenizer.json").rename(pipeline / "text" / "tokenizer.json")
    edit(pipeline, change)
    bundle = load_bundle(pipeline)
    assert bundle.graph_paths[0] == pipeline / "graphs" / "embeddings.onnx"
    assert bundle.tokenizer_path == pipeline / "text" / "tokenizer.json"


def _graph(path: Path, context_file: str | None = None) -> Path:
    """Write a graph of one node. With `context_file` it refers to a compiled context in that file."""
    attributes = {"embed_mode": 0, "ep_cache_context": context_file} if context_file else {}
    node = helper.make_node(
        "EPContext" if context_file else "Identity",
        ["x"],
        ["y"],
        domain="com.microsoft" if context_file else "",
        **attributes,
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], "g", values[:1], values[1:])), path)
    return path


_PIPELINE = {
    "session_options": {"intra_op_num_threads": 2, "log_id": "x", "session.intra_op.allow_spinning": "0"},
    "sliding_window": {"window_size": 64, "alignment": "left", "slide_key_value_cache": False},
    "pipeline": [
        {"embeddings": {"filename": "embeddings.onnx", "inputs": ["input_ids"], "outputs": ["hidden"]}},
        {
            "context": {
                "filename": "context.onnx",
                "run_on_token_gen": False,
                "reset_session_idx": 2,
                "session_options": {
                    "provider_options": [{"QNN": {"backend_path": "QnnHtp.dll", "soc_model": 60, "device": {"a": 1}}}]
                },
                "output_names_forwarder": {"out": "hidden"},
            },
            "iterator": {"filename": "iterator.onnx", "run_on_prompt": False},
        },
        {"lm_head": {"filename": "lm_head.onnx", "is_lm_head": True}},
    ],
}


@pytest.fixture
def pipeline(bundle: Path) -> Path:
    """A bundle of four graphs in the layout of Windows ML and Foundry Local."""

    def change(content: dict[str, Any]) -> None:
        del content["model"]["decoder"]["filename"]
        content["model"]["type"] = "decoder-pipeline"
        content["model"]["decoder"] |= _PIPELINE

    edit(bundle, change)
    (bundle / "ctx_qnn.bin").write_bytes(b"x")
    _graph(bundle / "context.onnx", "ctx_qnn.bin")
    for name in ("embeddings", "iterator", "lm_head"):
        _graph(bundle / f"{name}.onnx")
    return bundle


def test_pipeline_stages_are_read(pipeline: Path) -> None:
    bundle = load_bundle(pipeline)
    decoder = bundle.config.decoder
    embeddings, context, iterator, head = decoder.stages
    assert [stage.name for stage in decoder.stages] == ["embeddings", "context", "iterator", "lm_head"]
    assert [path.name for path in bundle.graph_paths] == [f"{stage.name}.onnx" for stage in decoder.stages]
    assert (embeddings.inputs, embeddings.outputs) == (("input_ids",), ("hidden",))
    assert (context.run_on_prompt, context.run_on_token_gen, context.reset_session_idx) == (True, False, 2)
    assert context.output_names_forwarder == {"out": "hidden"}
    assert (iterator.run_on_prompt, iterator.run_on_token_gen, iterator.reset_session_idx) == (False, True, -1)
    assert head.is_lm_head
    assert decoder.sliding_window == SlidingWindow(window_size=64, alignment="left", slide_key_value_cache=False)


def test_session_options_are_inherited_by_stages_without_own(pipeline: Path) -> None:
    embeddings, context, *_ = load_bundle(pipeline).config.decoder.stages
    assert embeddings.session_options.intra_op_num_threads == 2
    assert embeddings.session_options.entries == {"session.intra_op.allow_spinning": "0"}
    assert context.session_options.intra_op_num_threads is None
    assert context.session_options.providers == {"qnn": {"backend_path": "QnnHtp.dll", "soc_model": "60"}}
    edit(
        pipeline,
        lambda content: content["model"]["decoder"]["pipeline"][1]["context"].update(inherit_session_options=True),
    )
    context = load_bundle(pipeline).config.decoder.stages[1]
    assert context.session_options.intra_op_num_threads == 2
    assert context.session_options.providers["qnn"]["soc_model"] == "60"


def test_pipeline_may_be_one_object(pipeline: Path) -> None:
    stages = {name: stage for part in _PIPELINE["pipeline"] for name, stage in part.items()}  # type: ignore[attr-defined]
    edit(pipeline, lambda content: content["model"]["decoder"].update(pipeline=stages))
    assert [stage.name for stage in load_bundle(pipeline).config.decoder.stages] == list(stages)
    assert isinstance(load_bundle(pipeline).config.decoder.stages[0], Stage)


def test_missing_context_binary_is_named(pipeline: Path) -> None:
    (pipeline / "ctx_qnn.bin").unlink()
    with pytest.raises(BundleError, match=r"model lacks ctx_qnn\.bin, which context\.onnx refers to"):
        check_graph_files(load_bundle(pipeline))


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _with(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _cut(name: str, share: float) -> Callable[[Path], object]:
    def cut(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return cut


def _model(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda content: content["model"].update(values))


def _decoder(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda content: content["model"]["decoder"].update(values))


@pytest.mark.parametrize("name", ["batch-of-mine", "context-free"])
def test_path_outside_bundle_is_refused_for_any_folder_name(bundle: Path, name: str) -> None:
    folder = bundle.rename(bundle.with_name(name))
    shutil.copy(folder / "model.onnx", folder.parent)
    edit(folder, lambda content: content["model"]["decoder"].update(filename="../model.onnx"))
    with pytest.raises(BundleError, match="lies outside"):
        check_graph_files(load_bundle(folder))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "There is no model bundle at model"),
        (_without("genai_config.json"), "has no genai_config.json, so it is not a model bundle"),
        (
            _without("tokenizer.json"),
            "model has no tokenizer.json. Get it from the original model (`hf download ORG/MODEL",
        ),
        (_without("model.onnx"), "lacks model.onnx, which its genai_config.json names"),
        (_without("model.onnx.data"), "lacks model.onnx.data, which model.onnx refers to"),
        (_cut("model.onnx.data", 0.5), "model.onnx.data is truncated"),
        (_cut("model.onnx.data", 0.999), "model.onnx.data is truncated"),
        (_cut("model.onnx", 0.5), "model.onnx is truncated or not an ONNX graph"),
        (_cut("model.onnx", 0), "model.onnx is truncated or not an ONNX graph"),
        (_with("model.onnx", b"version https://git-lfs"), "model.onnx is truncated or not an ONNX graph"),
        (_with("genai_config.json", b"{"), "genai_config.json cannot be read"),
        (_with("genai_config.json", b"[]"), "genai_config.json cannot be read: Expected `object`"),
        (_with("genai_config.json", b"\xff\xfe{}"), "genai_config.json cannot be read"),
        (_with("tokenizer_config.json", b"[]"), "tokenizer_config.json cannot be read"),
        (_with("tokenizer_config.json", b'{"chat_template": [1]}'), "has no readable chat_template"),
        (_model(vocab_size="many"), r"Expected `int`, got `str` - at `$.model.vocab_size`"),
        (_model(context_length=0), "must be at least 1"),
        (_model(decoder=None), r"$.model.decoder"),
        (_decoder(filename="../model.onnx"), "'model.onnx' lies outside the bundle's folder"),
        (_decoder(filename="/etc/passwd"), "'passwd' lies outside the bundle's folder"),
        (_decoder(pipeline=[{"a": {"filename": "x/../../../a.onnx"}}]), "'a.onnx' lies outside the bundle's folder"),
        (_model(tokenizer_dir=".."), "lies outside the bundle's folder"),
        (_decoder(filename=""), "neither a `filename` nor a `pipeline`"),
        (_decoder(head_size=None), "head_size"),
        (_decoder(pipeline=[{"a": 1}]), "genai_config.json cannot be read"),
        (_decoder(pipeline=[{"a": {}}]), "filename"),
        (_decoder(session_options={"provider_options": [1]}), "genai_config.json cannot be read"),
        (_decoder(session_options=[1]), "Expected `object`, got `array`"),
        (_decoder(pipeline=[{"a": {"filename": "a.onnx", "session_options": "x"}}]), "got `str`"),
        (_decoder(pipeline=[{"a": {"filename": "a", "session_options": [1], "inherit_session_options": True}}]), "got"),
        (_model(tokenizer_dir="a" * 5000), "'model' cannot be read: "),
        (_decoder(sliding_window={"window_size": 64, "alignment": "middle"}), "middle"),
    ],
)
def test_damaged_bundle_gives_one_line(bundle: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError) as caught:
        check_graph_files(load_bundle(bundle))
    assert words in caught.value.message
    assert str(bundle.parent) not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("search", "recommended"),
    [
        ({}, {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 1.0, "top_k": 50}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.05, "top_k": 20, "top_p": 7.0}, {"repetition_penalty": 1.05, "top_k": 20}),
        ({"top_p": float("nan")}, {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05}),
    ],
)
def test_files_recommend_sampling_in_our_ranges(search: dict[str, Any], recommended: dict[str, float]) -> None:
    assert Search(**search).recommended == recommended
