"""Write docs/configuration.md from the structs of the configuration.

    python -m scripts.config_reference

Each key's name, type, range and default come from its field in gateway/config/tables/ or gateway/sampling.py, its
meaning from the comment there: `#:` lines above the field, or a comment after it. What a reload does with it comes from
gateway/config/effects.py. A new table needs nothing here.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from gateway.config.check import TABLES
from gateway.config.effects import effect_text
from gateway.config.settings import ENV_PREFIX
from gateway.config.tables import (
    MODEL_KINDS,
    Alias,
    Config,
    Fault,
    KeyLimits,
    LimitsConfig,
    ModelBase,
    Script,
    UpstreamTarget,
)
from gateway.config.value import upper
from gateway.sampling import Sampling, configurable

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
#: The options of `npu-gateway serve` that set a key.
FLAGS = {
    "server.host": "--host HOST",
    "server.port": "--port PORT",
    "server.insecure": "--insecure",
    "models.provider": "--provider NAME",
}
_LARGE = {2**31 - 1, 1e6, 1e9}  # limits that only keep a timer or a number in its range

INTRODUCTION = """# Configuration

<!-- `python -m scripts.config_reference` writes this page from the comments in gateway/config/tables/. -->

Every key of `config.toml`. Every key has a default: the shortest configuration is one model.

```toml
[models.mine]
source = "model.gguf"
```

## Which file is read

The first of these that is there. `npu-gateway config path` prints it, and in a terminal the whole search.

1. `--config FILE` of the command
2. the file that the environment variable `NPU_GATEWAY_CONFIG` names
3. `config.toml` in the current folder. Many programs use that name: a file without a `[models]` table that has keys of
   another program is passed over with one line.
4. `config.toml` in your data folder: `%LOCALAPPDATA%\\npu-gateway` on Windows, `~/.local/share/npu-gateway` on Linux,
   `~/Library/Application Support/npu-gateway` on macOS. `npu-gateway config init` writes it from the delivered file,
   with its comments; `npu-gateway config init FILE` writes another one. Neither changes a file that exists.
5. the file that is delivered with the gateway

`npu-gateway config check [FILE]` prints one line for each mistake, or `ok` and what is configured.

## When a change counts

A gateway that runs loads the models of new tables by itself. `npu-gateway reload`, or SIGHUP, applies all changes: of
the file, of the file with the keys, and of models. With `watch = true` in `[server]` the gateway does that by itself.
The column *reload* below says of each key what happens:

- *at once*: it counts for the next request. No model is loaded again.
- *loads the model again*: requests in progress finish, and later ones wait for the new engine. Only one engine of a
  model is in memory. A new table is a new model. A model whose table is removed finishes its requests; later ones get
  404.
- *restart*: the old value counts until the gateway is started again. `reload` names the key.

A file with a mistake changes nothing: the command prints the mistake and ends with exit code 1, and the log has it. A
missing bundle, and one that must be built first (`npu-gateway models --prepare`), are mistakes too. A model that does
not load is a failed model as at a start, and the others apply.

## Rules

- The command line comes before the environment, that before the file, that before the default.
- The environment can set every key: `NPU_GATEWAY_`, the table and the key in capitals, with `_` for every other
  character. The variable for `threads` of `[models."llama3.2-3b"]` is `NPU_GATEWAY_MODELS_LLAMA3_2_3B_THREADS`. A list
  is written `a,b`, a table `a=1,b=2`. An empty value unsets a key that is not set by default.
- A relative path begins at the folder of the file. `path` and `tokenizer` of a model begin at `models_dir`.
- Write a Windows path in single quotes, `'C:\\Users\\me'`, or with `/`. In double quotes a backslash starts an escape.
- A misspelt key stops the start, with the nearest right spelling.
- Four variables are no keys: `NPU_GATEWAY_CONFIG` (above), `NPU_GATEWAY_API_KEY` (one more API key, with the name
  `environment`), `NPU_GATEWAY_MODEL_SERVER` (a server that answers for all public model servers) and `HF_ENDPOINT`
  (one that answers for the Hugging Face Hub).
"""
_MODEL_TEXT = """`NAME` is what clients send as `model`. A name with a dot or a slash needs quotes:
`[models."llama3.2-3b"]`.

`engine` decides which other keys the table has: `"local"` (the default), `"genie"`, `"upstream"` or `"scripted"`. Their
own keys are below. Its variable is `NPU_GATEWAY_MODELS_NAME_ENGINE`."""


def page() -> str:
    """The text of docs/configuration.md."""
    return "\n".join([INTRODUCTION, *_sections()])


def undocumented() -> list[str]:
    """The fields without a comment."""
    structs: set[type[Struct]] = {
        Config,
        *TABLES.values(),
        ModelBase,
        *MODEL_KINDS.values(),
        Alias,
        KeyLimits,
        UpstreamTarget,
        Script,
        Fault,
    }
    return [f"{struct.__name__}.{name}" for struct in structs for name in _keys(struct) if not _meaning(struct, name)]


def _sections() -> Iterator[str]:
    yield from _section("Top of the file", Config, (), text="These keys come before the first `[table]`.")
    for name, struct in TABLES.items():
        yield from _section(f"[{name}]", struct, (name,))
        if struct is LimitsConfig:
            yield from _section("[limits.keys.NAME]", KeyLimits, None)
    yield from _section("[models.NAME]", ModelBase, ("models", "NAME"), text=_MODEL_TEXT)
    common = set(_keys(ModelBase))
    for engine, kind in MODEL_KINDS.items():
        own = [name for name in _keys(kind) if name not in common and name not in configurable()]
        title = f'[models.NAME] with engine = "{engine}"'
        yield from _section(title, kind, ("models", "NAME"), own, _sampling_text(engine))
    yield from _section("[[models.NAME.targets]]", UpstreamTarget, None)
    yield from _section("aliases = { NAME = { ... } }", Alias, None)
    yield from _section("[models.NAME.script]", Script, None)
    yield from _section("[[models.NAME.script.faults]]", Fault, None)


def _sampling_text(engine: Any) -> str:
    names = ", ".join(f"`{name}`" for name in configurable(engine))
    return f"{_summary(MODEL_KINDS[engine])}\n\nIt can also have these keys of `[defaults]`: {names}."


def _section(
    title: str, struct: type[Struct], table: tuple[str, ...] | None, keys: Iterable[str] = (), text: str = ""
) -> Iterator[str]:
    """A heading, the text and a table of the keys. `table`: None: the environment cannot set its keys."""
    yield f"## {title}\n\n{text or _summary(struct)}\n"
    columns = ["key", "value", "default", "meaning", *(["reload", "variable"] if table is not None else [])]
    yield _row(columns)
    yield _row("---" for _ in columns)
    infos = {item.name: item for item in msgspec.structs.fields(struct)}
    for name in keys or _keys(struct):
        item = infos[name]
        flag = FLAGS.get(f"{table[0]}.{name}" if table else "", "")
        meaning = _meaning(struct, name) + (f" Command line: `{flag}`." if flag else "")
        variable = [] if table is None else [f"`{ENV_PREFIX}{'_'.join(map(upper, (*table, name)))}`"]
        if table and name == "breaker":
            variable = [f"{variable[0][:-1]}_TOKEN_MS`, ..."]
        effect = [] if table is None else [effect_text(table, name)]
        yield _row([f"`{name}`", _values(item.type), _default(item), meaning, *effect, *variable])
    yield ""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _keys(struct: type[Struct]) -> list[str]:
    tables = (*TABLES, "models") if struct is Config else ()
    return [name for name in struct.__struct_fields__ if name not in tables]


def _summary(struct: type[Struct]) -> str:
    return inspect.cleandoc(struct.__doc__ or "")


def _meaning(struct: type[Struct], name: str) -> str:
    """The comment of the field, as a sentence."""
    sources = [Sampling] if name in configurable() else struct.__mro__
    text = next((found for each in sources if (found := _comments(each).get(name))), "")
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""


@cache
def _comments(struct: type) -> dict[str, str]:
    """The comment of each field in the source of the class: `#:` lines above it, or what is after it."""
    try:
        lines = inspect.getsource(struct).splitlines()
    except (OSError, TypeError):  # not a class of a source file
        return {}
    tree = ast.parse("\n".join(lines))
    fields = {ast.unparse(node.target): node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    return {name: _above(lines, node.lineno) or _after(lines, node) for name, node in fields.items()}


def _above(lines: list[str], number: int) -> str:
    found: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#:"):
            break
        found.insert(0, line.strip().removeprefix("#:").strip())
    return " ".join(found)


def _after(lines: list[str], node: ast.AnnAssign) -> str:
    [line] = lines[node.lineno - 1 : node.lineno]
    tokens = tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline)
    try:
        return next((token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT), "")
    except tokenize.TokenError:  # the field goes on in the next line
        return ""


def _values(hint: Any) -> str:
    if get_origin(hint) is Literal:  # msgspec sorts them
        return ", ".join(f"`{_toml(value)}`" for value in get_args(hint))
    return _type(msgspec.inspect.type_info(hint))


def _type(info: Any) -> str:
    """The values that a key takes, in words."""
    match info:
        case msgspec.inspect.BoolType():
            return "`true`, `false`"
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            return _number(info)
        case msgspec.inspect.StrType():
            return "text"
        case msgspec.inspect.CustomType():
            return "path"
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(f"`{_toml(value)}`" for value in values)
        case msgspec.inspect.VarTupleType(item_type=item):
            return "tables" if isinstance(item, msgspec.inspect.StructType) else f"list: {_type(item)}"
        case msgspec.inspect.DictType() | msgspec.inspect.StructType():
            return "table"
        case msgspec.inspect.UnionType(types=types):
            parts = [_type(part) for part in types if not isinstance(part, msgspec.inspect.NoneType)]
            return " or ".join(sorted(parts, key=lambda part: part.startswith("`")))
    raise TypeError(f"no words for {info}")


def _number(info: Any) -> str:
    kind = "whole number" if isinstance(info, msgspec.inspect.IntType) else "number"
    low = f"from {_plain(info.ge)}" if info.ge is not None else ""
    low = f"above {_plain(info.gt)}" if info.gt is not None else low
    high = f"to {_plain(info.le)}" if info.le is not None and info.le not in _LARGE and info.le < 2**53 else ""
    return " ".join(filter(None, (kind, low, high)))


def _plain(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else f"{int(number)}"


def _default(item: msgspec.structs.FieldInfo) -> str:
    default = item.default if item.default_factory is msgspec.NODEFAULT else item.default_factory()
    if default is None or (isinstance(default, dict | tuple) and not default) or isinstance(default, Struct):
        return "not set"
    if isinstance(default, str) and not default and msgspec.inspect.type_info(item.type) != msgspec.inspect.StrType():
        return "not set"
    return f"`{_toml(default)}`"


def _toml(value: Any) -> str:
    match value:
        case float():
            return _plain(value)
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case Path():
            return json.dumps(value.as_posix())
    return json.dumps(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
    print(f"{PAGE} is written")
