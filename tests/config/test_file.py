"""Loading config.toml: keys and their precedence, paths, and the message of each mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bundles.disk import cache_folder, data_folder
from gateway.config.file import all_mistakes, load_config
from gateway.config.hosts import is_loopback
from gateway.config.tables import BreakerConfig, Config, GenieModel, LocalModel, ScriptedModel, UpstreamModel
from gateway.dialects.choose import DIALECT_NAMES
from gateway.errors import ConfigError
from tests.support.paths import ROOT

ONE_MODEL = '[models.a]\npath = "a"\n'


class Folder:
    """A folder with a config.toml in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "config.toml"

    def load(self, text: str, environ: Mapping[str, str] | None = None, **options: Any) -> Config:
        self.file.write_text(text, encoding="utf-8")
        overrides = {key.replace("__", "."): value for key, value in options.items()}
        return load_config(self.file, environ or {}, overrides)

    def mistake(self, text: str, environ: Mapping[str, str] | None = None, **options: Any) -> str:
        """The message, without the file's path where it begins with it."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, environ, **options)
        assert "\n" not in caught.value.message
        return caught.value.message.removeprefix(f"{self.file}: ")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def local(config: Config, name: str) -> LocalModel:
    model = config.models[name]
    assert isinstance(model, LocalModel)
    return model


def test_file_value_overrides_default(folder: Folder) -> None:
    config = folder.load('[server]\nport = 9000\n[defaults]\nmax_tokens = 7\n[models.a]\npath = "x"\ntop_k = 3\n')
    assert config.server.port == 9000
    assert config.server.host == "127.0.0.1"
    assert config.defaults.max_tokens == 7
    assert config.models["a"].top_k == 3


def test_option_overrides_environment_overrides_file(folder: Folder) -> None:
    text = "[server]\nport = 9000\n" + ONE_MODEL
    environ = {"NPU_GATEWAY_SERVER_PORT": "9001"}
    assert folder.load(text, environ).server.port == 9001
    assert folder.load(text, environ, server__port=9002).server.port == 9002
    assert folder.load(text, environ, server__port=None).server.port == 9001


def test_environment_sets_keys_of_every_table(folder: Folder) -> None:
    environ = {
        "NPU_GATEWAY_DEFAULT_MODEL": "llama3.2-3b",
        "NPU_GATEWAY_DEFAULTS_TEMPERATURE": "0.5",
        "NPU_GATEWAY_BREAKER_ENABLED": "false",
        "NPU_GATEWAY_MODELS_LLAMA3_2_3B_ALIASES": "gpt-4o, gpt-4o-mini",
        "NPU_GATEWAY_MODELS_LLAMA3_2_3B_PROVIDER_OPTIONS": "soc_model=60,htp_arch=73",
        "NPU_GATEWAY_MODELS_LLAMA3_2_3B_BREAKER_TOKEN_MS": "12.5",
        "NPU_GATEWAY_MODELS_LLAMA3_2_3B_FALLBACK": "",
        "HOME": "/elsewhere",
    }
    config = folder.load('[models."llama3.2-3b"]\npath = "x"\nfallback = "llama3.2-3b"\n', environ)
    model = local(config, "llama3.2-3b")
    assert config.default_model == "llama3.2-3b"
    assert config.defaults.temperature == 0.5
    assert not config.breaker.enabled
    assert model.aliases == ("gpt-4o", "gpt-4o-mini")
    assert model.provider_options == {"soc_model": "60", "htp_arch": "73"}
    assert model.breaker == BreakerConfig(enabled=False, token_ms=12.5)
    assert model.fallback is None


def test_model_breaker_table_starts_from_breaker_table(folder: Folder) -> None:
    config = folder.load("[breaker]\ntoken_ms = 7\n" + ONE_MODEL + "[models.a.breaker]\nlatency_ms = 300\n")
    assert config.models["a"].breaker == BreakerConfig(token_ms=7, latency_ms=300)
    assert folder.load("[breaker]\ntoken_ms = 7\n" + ONE_MODEL).models["a"].breaker is None


def test_model_sampling_defaults_override_defaults_table(folder: Folder) -> None:
    config = folder.load("[defaults]\ntemperature = 0.7\ntop_p = 0.8\n" + ONE_MODEL + "temperature = 0\n")
    assert config.defaults_for("a").temperature == 0
    assert config.defaults_for("a").top_p == 0.8


def test_token_limit_of_alias_overrides_model_and_defaults(folder: Folder) -> None:
    aliases = 'aliases = { plain = {}, coder = { max_tokens = "context" }, short = { max_tokens = 5 } }\n'
    config = folder.load("[defaults]\nmax_tokens = 7\n" + ONE_MODEL + "max_tokens = 9\n" + aliases)
    assert list(config.models["a"].aliases) == ["plain", "coder", "short"]
    limits = {name: config.defaults_for("a", alias=name).max_tokens for name in ("a", *config.models["a"].aliases)}
    assert limits == {"a": 9, "plain": 9, "coder": "context", "short": 5}


def test_token_limit_may_be_the_context_everywhere(folder: Folder) -> None:
    assert folder.load('[defaults]\nmax_tokens = "context"\n' + ONE_MODEL).defaults_for("a").max_tokens == "context"
    assert folder.load(ONE_MODEL + 'max_tokens = "context"\n').defaults_for("a").max_tokens == "context"
    config = folder.load(
        ONE_MODEL, {"NPU_GATEWAY_DEFAULTS_MAX_TOKENS": "context", "NPU_GATEWAY_MODELS_A_MAX_TOKENS": "6"}
    )
    assert (config.defaults.max_tokens, config.defaults_for("a").max_tokens) == ("context", 6)


def test_relative_path_resolves_from_folder_of_file(folder: Folder) -> None:
    text = 'models_dir = "m"\n[models.a]\nsource = "gguf/x.gguf"\n[models."b/c"]\nsource = "pypi:x==1"\n'
    config = folder.load(
        text + '[models.d]\npath = "sub/d"\ntokenizer = "text"\n[models.e]\nengine = "genie"\npath = "e/config.json"\n'
    )
    models = folder.path / "m"
    assert config.models_dir == models
    assert Path(local(config, "a").path) == models / "a"
    assert Path(local(config, "a").source) == folder.path / "gguf" / "x.gguf"
    assert Path(local(config, "b/c").path) == models / "b%2Fc"
    assert local(config, "b/c").source == "pypi:x==1"
    assert Path(local(config, "d").path) == models / "sub" / "d"
    assert Path(local(config, "d").tokenizer) == models / "text"
    assert config.models["e"] == GenieModel(path=str(models / "e" / "config.json"))


def test_log_file_is_relative_to_the_file_unless_it_is_no_path(folder: Folder) -> None:
    assert Path(folder.load('[log]\nfile = "logs/g.log"\n' + ONE_MODEL).log.file) == folder.path / "logs" / "g.log"
    assert [folder.load(f'[log]\nfile = "{name}"\n' + ONE_MODEL).log.file for name in ("auto", "")] == ["auto", ""]


def test_absolute_path_is_kept(folder: Folder, tmp_path: Path) -> None:
    bundle = tmp_path / "elsewhere"
    assert Path(local(folder.load(f"[models.a]\npath = '{bundle}'\n"), "a").path) == bundle


@pytest.mark.parametrize(
    ("table", "model"),
    [
        ('engine = "local"\nsource = "pypi:x==1"\nthreads = 2\n', LocalModel),
        ('engine = "genie"\npath = "m/config.json"\nprefix_cache = false\n', GenieModel),
        ('engine = "upstream"\nurl = "http://127.0.0.1:1/v1"\ncontext_length = 512\n', UpstreamModel),
        ('engine = "scripted"\nsimulate = "x-elite"\ndialect = "qwen"\n', ScriptedModel),
    ],
    ids=["local", "genie", "upstream", "scripted"],
)
def test_engine_key_selects_model_struct(folder: Folder, table: str, model: type) -> None:
    assert type(folder.load(f"[models.m]\n{table}").models["m"]) is model


def test_engine_variable_selects_model_struct(folder: Folder) -> None:
    environ = {"NPU_GATEWAY_MODELS_A_ENGINE": "upstream", "NPU_GATEWAY_MODELS_A_URL": "http://127.0.0.1:1/v1"}
    assert folder.load("[models.a]\nqueue = 3\n", environ).models["a"] == UpstreamModel(
        url="http://127.0.0.1:1/v1", queue=3
    )


def test_provider_option_goes_to_local_models_only(folder: Folder) -> None:
    text = ONE_MODEL + '[models.b]\nengine = "upstream"\nurl = "http://127.0.0.1:1/v1"\n'
    config = folder.load(text, models__provider="qnn")
    assert local(config, "a").provider == "qnn"
    assert config.models["b"] == UpstreamModel(url="http://127.0.0.1:1/v1")


def test_api_keys_come_from_table_file_and_environment(folder: Folder) -> None:
    (folder.path / "keys.txt").write_text("# team\nanna k-1\n\nk-2==\n", encoding="utf-8-sig")
    text = '[server]\napi_keys = { me = "k-0" }\napi_keys_file = "keys.txt"\n' + ONE_MODEL
    config = folder.load(text, {"NPU_GATEWAY_API_KEY": "k-3"})
    assert config.server.api_keys == {"me": "k-0", "anna": "k-1", "key4": "k-2==", "environment": "k-3"}


def test_file_with_byte_order_mark_loads(folder: Folder) -> None:
    folder.file.write_text(ONE_MODEL, encoding="utf-8-sig")
    assert "a" in load_config(folder.file, {}).models


SCRIPTED = '[models.s]\nengine = "scripted"\n'
UPSTREAM = '[models.u]\nengine = "upstream"\n'
MISTAKES = [
    (ONE_MODEL + "temprature = 1", "[models.a] temprature: unknown key; did you mean 'temperature'?"),
    ("[sever]\nport = 1\n" + ONE_MODEL, "sever: unknown key; did you mean 'server'?"),
    ('[server]\nport = "x"\n' + ONE_MODEL, "[server] port: expected a whole number, got text"),
    ("[server]\nport = 70000\n" + ONE_MODEL, "[server] port: expected a whole number of at most 65535, got 70000"),
    ("[server]\nport = true\n" + ONE_MODEL, "[server] port: expected a whole number, got true"),
    ("port = 1\n" + ONE_MODEL, "port: unknown key here; it belongs in [server]"),
    (
        '[server]\ndefault_model = "a"\n' + ONE_MODEL,
        "[server] default_model: unknown key here; it belongs at the top of the file, before the first [table]",
    ),
    ("[server]\nzzz = 1\n" + ONE_MODEL, "[server] zzz: unknown key"),
    ("[breaker]\nfallback = 'a'\n" + ONE_MODEL, "[breaker] fallback: unknown key here; it belongs in [models.NAME]"),
    ("[defaults]\ntoken_ms = 1\n" + ONE_MODEL, "[defaults] token_ms: unknown key here; it belongs in [breaker]"),
    (ONE_MODEL + "token_ms = 1\n", "[models.a] token_ms: unknown key here; it belongs in [models.a.breaker]"),
    (ONE_MODEL + "port = 1\n", "[models.a] port: unknown key here; it belongs in [server]"),
    ("threads = 1\n" + ONE_MODEL, "threads: unknown key here; it belongs in [models.NAME]"),
    ("[breaker]\nrate = 0\n" + ONE_MODEL, "[breaker] rate: expected a number above 0, got 0"),
    ("[breaker]\nwindow = 3\n" + ONE_MODEL, "[breaker] min_calls: 5 is more than the window of 3"),
    (
        ONE_MODEL + "[models.a.breaker]\nmin_calls = 11\n",
        "[models.a.breaker] min_calls: 11 is more than the window of 10",
    ),
    (
        ONE_MODEL + "[models.a.breaker]\nengine = 1\n",
        "[models.a.breaker] engine: unknown key here; it belongs in [models.a]",
    ),
    (ONE_MODEL + "[models.a.breaker]\ntokens_ms = 1\n", "[models.a.breaker] tokens_ms: unknown key; did you mean"),
    (
        '[models.llama3.2-3b]\npath = "x"\n',
        '[models.llama3] 2-3b: unknown table; a name with a dot needs quotes: [models."llama3.2-3b"]',
    ),
    ('[models."b.c"]\nengine = "locl"\n', "[models.\"b.c\"] engine: 'locl' is not one of local, genie, upstream,"),
    ('[models.a]\nprovider = "hexgon"\n', "[models.a] provider: 'hexgon' is not one of auto, cpu, qnn"),
    (
        '[models.a]\nprovider = "GPU"\n',
        "[models.a] provider: models run on the NPU ('npu') or the CPU ('cpu'), not 'GPU'",
    ),
    (
        '[models.a]\npath = "Sub/x.GGUF"\n',
        "[models.a] path: is the folder of a bundle; write a file of weights as source = 'Sub/x.GGUF'",
    ),
    (
        '[models.a]\npath = "hf:org/model"\n',
        "[models.a] path: is the folder of a bundle; write source = 'hf:org/model'",
    ),
    ('[models.a]\npath = "https://x/y"\n', "[models.a] path: is the folder of a bundle; `npu-gateway pull URL`"),
    ('[models.a]\npath = "x/model.onnx"\n', "[models.a] path: is the folder of a bundle, not a file in it: path ="),
    ("[models.a]\n", "[models.a]: needs path (the folder of the bundle) or source"),
    (ONE_MODEL + 'aliases = "x"\n', "[models.a] aliases: expected a table or a list, got text"),
    (
        ONE_MODEL + "aliases = { x = { max_tokns = 1 } }\n",
        "[models.a] aliases: unknown key 'max_tokns' in one item",
    ),
    (ONE_MODEL + 'max_tokens = "contxt"\n', "[models.a] max_tokens: 'contxt' is not one of a number, context; did you"),
    ("[defaults]\nmax_tokens = 0\n" + ONE_MODEL, "[defaults] max_tokens: expected a whole number of at least 1, got 0"),
    (ONE_MODEL + 'aliases = ["x", 3]\n', "[models.a] aliases: expected text, got a whole number in one item"),
    (ONE_MODEL + "breaker = 3\n", "models.a.breaker must be a table, written [models.a.breaker]"),
    ("models = 3\n", "models must be a table, written [models]"),
    ("[models]\na = 3\n", "models.a must be a table, written [models.a]"),
    ("models_dir = 5\n" + ONE_MODEL, "models_dir: expected a path, got int"),
    ("", "[models]: the file has no model"),
    ("[x\n", "line 1: not valid TOML: a table is written [NAME]"),
    ('default_model = "A"\n' + ONE_MODEL, "default_model: there is no model 'A'"),
    ('default_model = "mode"\n[models.model]\npath = "x"\n', "default_model: there is no model 'mode'; did you mean"),
    (
        'default_model = "b"\n' + ONE_MODEL + 'aliases = ["b"]\n',
        "default_model: there is no model 'b'; it is an alias, write 'a'",
    ),
    (ONE_MODEL + 'fallback = "b"\n', "[models.a] fallback: there is no model 'b'"),
    (ONE_MODEL + 'fallback = "a"\n', "[models.a] fallback: is a cycle: a -> a"),
    (
        ONE_MODEL + 'fallback = "b"\n[models.b]\npath = "x"\nfallback = "a"\n',
        "[models.a] fallback: is a cycle: a -> b -> a",
    ),
    (
        ONE_MODEL + 'fallback = "b"\n[models.b]\npath = "x"\nfallback = "c"\n[models.c]\npath = "x"\nfallback = "b"\n',
        "[models.b] fallback: is a cycle: b -> c -> b",
    ),
    (ONE_MODEL + 'aliases = ["a"]\n', "[models.a] aliases: 'a' already names the model 'a'"),
    (
        ONE_MODEL + 'aliases = ["x"]\n[models.b]\npath = "b"\naliases = ["x"]\n',
        "[models.b] aliases: 'x' already names the model 'a'",
    ),
    (UPSTREAM, "[models.u] url: engine = 'upstream' needs the server's URL"),
    (UPSTREAM + 'url = "localhost:8081"\n', "[models.u] url: engine = 'upstream' needs the server's URL"),
    (ONE_MODEL + 'url = "http://x"\n', "[models.a] url: means something only with engine = 'upstream'"),
    (UPSTREAM + "threads = 2\n", "[models.u] threads: means something only with engine = 'local'"),
    (UPSTREAM + 'path = "x"\n', "[models.u] path: means something only with engine = 'local' or 'genie'"),
    (UPSTREAM + "[models.u.script]\n", "[models.u] script: means something only with engine = 'scripted'"),
    (UPSTREAM + 'dialect = "qwen"\n', "[models.u] dialect: means something only with engine = 'local' or 'genie' or"),
    (
        UPSTREAM + "treads = 2\n",
        "[models.u] treads: unknown key; did you mean 'threads'? It means something only with engine = 'local'",
    ),
    ('[models.g]\nengine = "genie"\nsource = "x"\n', "[models.g] source: means something only with engine = 'local'"),
    ('[models.g]\nengine = "genie"\n', "[models.g]: needs path (the folder of the bundle)"),
    (
        ONE_MODEL + 'dialect = "mistrl"\n',
        f"[models.a] dialect: 'mistrl' is not one of {', '.join(DIALECT_NAMES)}; did you mean 'mistral'?",
    ),
    (SCRIPTED + 'script = { repliez = ["x"] }\n', "[models.s] script.repliez: unknown key; did you mean 'replies'?"),
    (SCRIPTED + "script = { replies = [] }\n", "[models.s] script.replies: expected a list that is not empty, got []"),
    (
        SCRIPTED + "[models.s.script]\ntoken_s = true\n",
        "[models.s] script.token_s: expected a number or a list, got true",
    ),
    (
        SCRIPTED + 'script = { faults = [{ error = "NoSuchError" }] }\n',
        "[models.s] script.faults: there is no error 'NoSuchError'",
    ),
    (
        SCRIPTED + 'simulate = "x-elit"\n',
        "[models.s] simulate: 'x-elit' is not one of x-elite, x2-elite; did you mean 'x-elite'?",
    ),
    ('[models.s]\nengine = "scripted"\ndialect = "nonsense"\n', "[models.s] dialect: 'nonsense' is not one of"),
    (
        ONE_MODEL + "provider_options = { htp_performance_mod = 'burst' }\n",
        "[models.a] provider_options: the QNN provider has no option 'htp_performance_mod'; did you mean",
    ),
    ('[server]\nhost = "0.0.0.0"\n' + ONE_MODEL, "[server] host: '0.0.0.0' lets other machines connect without a key"),
    ('[server]\napi_keys = { a = "" }\n' + ONE_MODEL, "[server] api_keys: the key of 'a' must be"),
    ('[server]\napi_keys = { a = "x", b = "x" }\n' + ONE_MODEL, "[server] api_keys: two names have the same key"),
    ('[server]\napi_keys_file = "no.txt"\n' + ONE_MODEL, "[server] api_keys_file:"),
    ("[server.api_keys]\n" + ONE_MODEL, "[server] api_keys: expected a table that is not empty, got {}"),
    ('[server]\napi_keys_file = ""\n' + ONE_MODEL, "[server] api_keys_file: expected text that is not empty, got ''"),
    ("[server]\ntimeout_s = inf\n" + ONE_MODEL, "[server] timeout_s: expected a number of at most 1000000, got inf"),
    ('[models.""]\npath = "x"\n', '[models.""]: a model needs a name'),
    (ONE_MODEL + 'aliases = [""]\n', "[models.a] aliases: an alias must not be empty"),
    (ONE_MODEL + 'aliases = ["\\u001b[2J"]\n', "[models.a] aliases: '\\x1b[2J' must be printable"),
    ('[models."a\\u0007"]\npath = "x"\n', '[models."a\a"]: the name must be printable'),
    (f"[server]\nport = {'9' * 5000}\n", "not valid TOML: a number has too many digits"),
    (f"a = {'[' * 20000}", "not valid TOML: too many nested lists or tables"),
    ('models_dir = "~unknown-user/x"\n' + ONE_MODEL, "models_dir: '~' has no folder here"),
    ('[models.a]\npath = "~unknown-user/x"\n', "[models.a] path: '~' has no folder here"),
    ('[models.a]\nsource = "~unknown-user/x"\n', "[models.a] source: '~' has no folder here"),
    (
        '[models.a]\npath = "a\\tb"\n',
        "[models.a] path: 'a\\tb' has a control character; write a path in single quotes: 'a\\tb'",
    ),
    ('[models.a]\npath = "a\\u0000b"\n', "[models.a] path: a path has no NUL character"),
    (f'[models.a]\npath = "{"a" * 300}"\n', "[models.a] path: no system has so long a path"),
    (f'[models.a]\nsource = "{"a/" * 3000}"\n', "[models.a] source: no system has so long a path"),
    ('[server]\napi_keys_file = "~unknown-user/x"\n' + ONE_MODEL, "[server] api_keys_file: '~' has no folder here"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistake_message_is_one_line_with_table_and_key(folder: Folder, text: str, message: str) -> None:
    assert folder.mistake(text).startswith(message)


def test_mistake_message_names_file(folder: Folder) -> None:
    folder.file.write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.toml: x: unknown key"):
        load_config(folder.file, {})
    with pytest.raises(ConfigError, match=r"none\.toml: the file does not exist"):
        load_config(folder.path / "none.toml", {})
    folder.file.write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 2\)"):
        load_config(folder.file, {})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NPU_GATEWAY_SERVER_PROT", "1", "is unknown; did you mean 'NPU_GATEWAY_SERVER_PORT'?"),
        ("NPU_GATEWAY_SERVER_PORT", "x", "expected a whole number, got text"),
        ("NPU_GATEWAY_MODELS_A_ENGINE", "remote", "'remote' is not one of"),
        ("NPU_GATEWAY_MODELS_A_URL", "http://x", "means something only with engine = 'upstream'"),
        ("NPU_GATEWAY_MODELS_B_PATH", "x", "is unknown"),
    ],
)
def test_mistake_message_names_variable(folder: Folder, variable: str, value: str, message: str) -> None:
    found = folder.mistake(ONE_MODEL, {variable: value})
    assert found.startswith(f"environment variable {variable}") and message in found


def test_variable_that_means_two_models_is_a_mistake(folder: Folder) -> None:
    models = "".join(f'[models.{name}]\nengine = "upstream"\nurl = "http://{name}"\n' for name in ("a-b", "a_b"))
    folder.load(models)
    found = folder.mistake(models, {"NPU_GATEWAY_MODELS_A_B_API_KEY": "sk-1"})
    assert (
        found
        == "environment variable NPU_GATEWAY_MODELS_A_B_API_KEY means the models 'a-b' and 'a_b'; rename one of them"
    )


def test_mistake_message_names_option(folder: Folder) -> None:
    assert folder.mistake(ONE_MODEL, server__port=-1) == "option --port: expected a whole number of at least 0, got -1"


def test_mistake_in_keys_file_names_line_without_key(folder: Folder) -> None:
    (folder.path / "keys.txt").write_text("anna her secret\n", encoding="utf-8")
    found = folder.mistake('[server]\napi_keys_file = "keys.txt"\n' + ONE_MODEL)
    assert found.endswith("keys.txt: line 1: expected KEY or NAME KEY")


@pytest.mark.parametrize("extra", ["insecure = true\n", 'api_keys = { a = "k" }\n'])
def test_non_loopback_host_needs_key_or_insecure(folder: Folder, extra: str) -> None:
    assert folder.load('[server]\nhost = "0.0.0.0"\n' + extra + ONE_MODEL).server.host == "0.0.0.0"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_is_loopback_with_loopback_host_is_true(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example", "localhost.example"])
def test_is_loopback_with_other_host_is_false(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("name", ["npu", "NPU", "qnn", "QNNExecutionProvider"])
def test_npu_is_another_name_of_qnn(folder: Folder, name: str) -> None:
    assert local(folder.load(f"{ONE_MODEL}provider = '{name}'\n"), "a").provider == "qnn"
    assert local(folder.load(ONE_MODEL, {"NPU_GATEWAY_MODELS_A_PROVIDER": name}), "a").provider == "qnn"


def test_folder_with_the_name_of_a_file_is_a_path(folder: Folder) -> None:
    (folder.path / "models" / "x.gguf").mkdir(parents=True)
    folder.load('[models.a]\npath = "x.gguf"\n')


def test_file_in_the_models_folder_is_named_whole(folder: Folder) -> None:
    file = folder.path / "models" / "x.gguf"
    file.parent.mkdir()
    file.touch()
    assert f"source = '{file}'" in folder.mistake('[models.a]\npath = "x.gguf"\n')


def test_all_mistakes_has_each_mistake_once_without_those_that_follow(folder: Folder) -> None:
    text = """
default_model = "b"
[server]
port = "x"
prot = 1
[breaker]
window = 2
[models.a]
pth = "a"
fallback = "zzz"
[models.c]
engine = "locl"
url = "http://x"
[models.d]
provider_options = { nonsense = "1" }
source = "d.gguf"
aliases = ["a"]
"""
    folder.file.write_text(text, encoding="utf-8")
    config, found = all_mistakes(folder.file, {"NPU_GATEWAY_SERVER_HSOT": "x"})
    heads = [message.removeprefix(f"{folder.file}: ").partition(":")[0] for message in found]
    assert heads == [
        "environment variable NPU_GATEWAY_SERVER_HSOT is unknown; did you mean 'NPU_GATEWAY_SERVER_HOST'?",
        "[models.c] engine",
        "[server] port",
        "[server] prot",
        "[models.a] pth",
        "default_model",
        "[breaker] min_calls",
        "[models.d] aliases",
        "[models.d] provider_options",
    ]
    assert config.server.port == 8000 and list(config.models) == ["a", "c", "d"]


def test_all_mistakes_of_a_right_file_is_empty(folder: Folder) -> None:
    folder.file.write_text(ONE_MODEL, encoding="utf-8")
    config, found = all_mistakes(folder.file, {})
    assert (list(config.models), found) == (["a"], [])


def test_data_folder_is_platform_user_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert data_folder({}, "linux") == tmp_path / ".local" / "share" / "npu-gateway"
    assert data_folder({"XDG_DATA_HOME": str(tmp_path / "d")}, "linux") == tmp_path / "d" / "npu-gateway"
    assert data_folder({"LOCALAPPDATA": str(tmp_path / "l")}, "win32") == tmp_path / "l" / "npu-gateway"
    assert data_folder({}, "darwin") == tmp_path / "Library" / "Application Support" / "npu-gateway"


def test_repository_config_and_commented_examples_load(folder: Folder) -> None:
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    config = folder.load(text)
    assert list(config.models) == ["smollm2-135m", "minilm"]
    examples = [line.removeprefix("# ") if _is_commented_toml(line) else line for line in text.splitlines()]
    (folder.path / "keys.txt").write_text("anna k-1\n", encoding="utf-8")
    config = folder.load("\n".join(examples))
    assert list(config.models) == ["smollm2-135m", "minilm", "llama3.2-3b", "qwen2-7b", "elsewhere"]
    assert config.models["qwen2-7b"].fallback == "llama3.2-3b"
    assert config.default_model == "smollm2-135m"


def _is_commented_toml(line: str) -> bool:
    words = line.split()
    return line.startswith("# [models") or (len(words) > 3 and words[0] == "#" and words[2] == "=")


@given(st.text(max_size=200))
def test_random_text_raises_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.toml"
    file.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ConfigError):  # no random text names a model
        load_config(file, {})


def test_model_server_variable_is_no_configuration_key(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(ONE_MODEL, encoding="utf-8")
    load_config(file, {"NPU_GATEWAY_MODEL_SERVER": "http://127.0.0.1:1"})


def test_cache_folder_is_of_the_user(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}, "linux") == tmp_path / "npu-gateway"
    assert cache_folder({"LOCALAPPDATA": str(tmp_path)}, "win32") == tmp_path / "npu-gateway" / "cache"
    assert cache_folder({}, "darwin").parts[-3:] == ("Library", "Caches", "npu-gateway")


@pytest.mark.parametrize("key", ["models_dir", "[server]\napi_keys_file", "[models.b]\npath", "[models.b]\nsource"])
def test_path_with_an_escape_is_refused_with_what_was_meant(folder: Folder, key: str) -> None:
    message = folder.mistake(f'{key} = "C:\\temp\\new"\n')
    assert message.endswith(r"write a path in single quotes: 'C:\temp\new'")
    if "keys" not in key:  # this file is read at once
        folder.load(f"{key} = 'C:\\temp\\new'\n" + (ONE_MODEL if "models." not in key else ""))


# -- a model that drafts -----------------------------------------------------------------------------------------------


def test_draft_is_the_folder_of_a_model(folder: Folder) -> None:
    config = folder.load('[models.big]\npath = "b"\ndraft = "small"\n[models.small]\nsource = "pypi:x==1"\n')
    assert local(config, "big").draft == local(config, "small").path == str(folder.path / "models" / "small")


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("smal", "there is no model 'smal'; did you mean 'small'?"),
        ("s", "there is no model 's'; it is an alias, write 'small'"),
        ("big", "a model cannot draft for itself; name a smaller one with the same vocabulary"),
        ("twin", "a model cannot draft for itself; name a smaller one with the same vocabulary"),
        ("far", "'far' has engine = 'upstream'; only a model with engine = 'local' can draft"),
    ],
)
def test_draft_that_cannot_draft(folder: Folder, draft: str, message: str) -> None:
    others = '[models.small]\npath = "s"\naliases = ["s"]\n[models.far]\nengine = "upstream"\nurl = "http://h/v1"\n'
    text = f'[models.big]\npath = "b"\ndraft = "{draft}"\n[models.twin]\npath = "b"\n{others}'
    assert folder.mistake(text) == f"[models.big] draft: {message}"


def test_only_the_local_engine_has_a_draft(folder: Folder) -> None:
    text = '[models.big]\nengine = "genie"\npath = "b"\ndraft = "small"\n[models.small]\npath = "s"\n'
    assert folder.mistake(text).endswith("means something only with engine = 'local'")
