"""Records token ids of llama.cpp and SentencePiece, which tests compare with: tests/builder/sources/data/*.json.

Neither is a dependency of the tests. To record again, with an environment of your own:

    python -m venv v && v/bin/pip install xllamacpp sentencepiece gguf
    v/bin/python tests/support/record_llama_cpp.py SMOLLM2.gguf

xllamacpp contains llama.cpp, whose server tokenizes. The files for it are models with one tiny layer.
"""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

DATA = Path(__file__).parents[1] / "builder" / "sources" / "data"
RULES = (
    *("default", "gpt-2", "smollm", "starcoder", "refact", "command-r", "llama-bpe", "llama3", "smaug-bpe", "qwen2"),
    *(
        "deepseek-r1-qwen",
        "tekken",
        "olmo",
        "trillion",
        "minerva-7b",
        "llama-v3",
        "falcon3",
        "pixtral",
        "dbrx",
        "gpt-4o",
    ),
    "megrez",
)
TEXTS = [
    *("", " ", "   ", "\n", "\n\n \n", "Hello", " Hello", "  two leading spaces", "trailing spaces  "),
    *("tabs\tand\r\nline ends\r\n\r\n", "0123456789", "In 1984, x = 3.14159 and 2,024 items cost 12 345,67 EUR"),
    *("½ ⅓ ² ٣ Ⅷ 七", "I'm you're we've he'd she'll it's don't I'M YOU'RE", "'tis rock'n'roll a'b'c 1'2 '' 's x 's"),
    *("don\u2019t \u2018quote\u2019 \u201cdouble\u201d", "naïve café Ångström ﬁne", "Привет, как дела?"),
    *(
        "日本語のテキストと中文文本和한국어",
        "مرحبا بالعالم שלום",
        "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
        "a\u200bb\u00a0c\u2003d\u3000e\x85f\x1cg",
    ),
    *("def f(x):\n    return x**2  # it's a 'test'\n\n\nclass A:\n\tpass\n", '{"key": [1, 2.5e-3, null], "s": "\\n"}'),
    *("<div class='a'>&amp;</div> http://example.com/?q=1&r=%20", "$100 #tag @user a_b C++ C# ~!@#$%^&*()_+|<=>"),
    *("CamelCaseHTTPServer iPhone ǅabc ʰª", "!!!...???---", "//\n/ a/b\n", "AAAAAAAA aaaaaaaa", "x <|im_end|>y </s>"),
    *("ababab bananana", "<tool>x <tool>", " <|user|> Hi<|end|>", "a<s>b", "▁ <0x0A>", "a" * 60),
]
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog's owner isn't amused",
    "a banana and another banana; bananas are in the basket of the man from Havana",
    "def function(argument):\n    return argument ** 2  # it's a 'test'",
    "naïve café, Ångström: Привет, как дела? 日本語のテキスト 한국어",
    "  indented   text\twith tabs  and    spaces ababab aaaa 1984 2024",
]


def main(smollm2: Path) -> None:
    fields = gguf.GGUFReader(smollm2).fields
    vocabulary = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")}
    byte_level = {rule: ids_of({"model": "gpt2", "pre": rule, **vocabulary}) for rule in RULES}
    write("byte_level", {"texts": TEXTS, "ids": byte_level})

    trained, model = train()
    spaces = {
        str(prefix): ids_of({"model": "llama", "add_space_prefix": prefix, "add_bos_token": True, **trained})
        for prefix in (True, False)
    }
    write("sentencepiece", {"vocabulary": trained, "texts": TEXTS, "ids": spaces, "library": library_ids(model)})


def ids_of(metadata: dict[str, Any]) -> list[list[list[int]]]:
    """For each text: the ids with begin token and special tokens, and the ids of the text as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_model(path, metadata)
        command = [sys.executable, __file__, "--ids", str(path)]  # the library cannot end its server
        output = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    ids: list[list[list[int]]] = json.loads(output.splitlines()[-1])
    return ids


def print_ids(path: str) -> None:
    import os

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.warmup, params.port = path, 256, 0, False, 0
    server = xllamacpp.Server(params)
    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    found = []
    for text in TEXTS:
        pair = []
        for special in (True, False):
            body = {"content": text, "add_special": special, "parse_special": special}
            connection.request("POST", "/tokenize", json.dumps(body), {"Content-Type": "application/json"})
            pair.append(json.loads(connection.getresponse().read())["tokens"])
        found.append(pair)
    print(f"\n{json.dumps(found)}", flush=True)
    os._exit(0)


def write_model(path: Path, metadata: dict[str, Any]) -> None:
    """A Llama of one layer with this tokenizer."""
    writer, size = gguf.GGUFWriter(path, "llama"), len(metadata["tokens"])
    for key, number in (("block_count", 1), ("context_length", 256), ("embedding_length", 32)):
        writer.add_uint32(f"llama.{key}", number)
    for key, number in (("feed_forward_length", 32), ("attention.head_count", 2), ("rope.dimension_count", 16)):
        writer.add_uint32(f"llama.{key}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in ({"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0} | metadata).items():
        kinds: dict[type, Any] = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        kinds.get(type(value), writer.add_array)(f"tokenizer.ggml.{key}", value)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd": (size, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    for name, shape in (shapes | {f"blk.0.{name}": (32, 32) for name in square}).items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def train() -> tuple[dict[str, Any], bytes]:
    """A SentencePiece vocabulary as GGUF metadata, and the model file."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 9),
        model_writer=written,
        model_type="bpe",
        vocab_size=560,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        control_symbols=["<|user|>", "<|end|>"],
        user_defined_symbols=["<tool>"],
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ids = range(model.get_piece_size())
    kinds = ((model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6), (lambda i: i == 5, 4))
    vocabulary = {
        "tokens": [model.id_to_piece(i) for i in ids],
        "scores": [float(model.get_score(i)) for i in ids],
        "token_type": [next((kind for test, kind in kinds if test(i)), 1) for i in ids],
    }
    assert vocabulary["tokens"][5] == "<tool>"
    return vocabulary, written.getvalue()


def library_ids(model: bytes) -> list[list[int]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.encode(text) for text in TEXTS]


def write(name: str, content: dict[str, Any]) -> None:
    DATA.mkdir(exist_ok=True)
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    (DATA / f"{name}.json").write_text(text.replace('],"', '],\n"') + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    if sys.argv[1] == "--ids":
        print_ids(sys.argv[2])
    else:
        main(Path(sys.argv[1]))
