"""Router: names, aliases and the list of models. In virtual time."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from gateway.config.tables import Config, Defaults
from gateway.engines.base import EngineStatus
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import (
    InvalidRequest,
    ModelNotFound,
)
from gateway.lanes.lane import Lane
from gateway.lanes.router import Named, Router
from tests.support.routing import BREAKER, answer_of, model, request, routing
from tests.support.virtual_time import in_virtual_time, now

NAMES = {
    "main": model(aliases=("gpt-4o-mini", "qwen2:7b")),
    "other": model(aliases=("other:background", "tagged:latest", "tagged", "TAGGED")),
}


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("main", Named("main", "main")),
        ("gpt-4o-mini", Named("main", "gpt-4o-mini")),
        ("qwen2:7b", Named("main", "qwen2:7b")),
        ("main:background", Named("main", "main", background=True)),
        ("qwen2:7b:background", Named("main", "qwen2:7b", background=True)),
        ("other:background", Named("other", "other:background")),  # the alias has priority over the suffix
        ("MAIN", Named("main", "main")),
        ("main:latest", Named("main", "main")),
        ("GPT-4o-Mini:latest", Named("main", "gpt-4o-mini")),
        ("Qwen2:7B:latest:background", Named("main", "qwen2:7b", background=True)),
        ("Main:latest:background", Named("main", "main", background=True)),
        ("tagged:latest", Named("other", "tagged:latest")),
        ("tagged", Named("other", "tagged")),
    ],
)
@in_virtual_time
async def test_lookup_of_names_and_aliases(name: str, route: Named) -> None:
    async with routing(NAMES) as router:
        assert router.lookup(name) == route


@pytest.mark.parametrize("name", ["unknown", "MAIN2", "main:", "main:LATEST:7b", ":background", "x\n" * 100])
@in_virtual_time
async def test_unknown_name_is_refused_with_list_of_models(name: str) -> None:
    async with routing(NAMES) as router:
        with pytest.raises(
            ModelNotFound, match=r"does not exist(; there|; did you mean .*\? There) is main, other\.$"
        ) as caught:
            await router.open(request(name))
        assert caught.value.param == "model"
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", ["", None])
@in_virtual_time
async def test_missing_name_is_refused(name: str | None) -> None:
    async with routing(NAMES) as router:
        with pytest.raises(ModelNotFound, match="names no model"):
            router.lookup(name)


@in_virtual_time
async def test_default_model_answers_unknown_names() -> None:
    async with routing(NAMES, default_model="other") as router:
        assert router.lookup(None) == Named("other", "other")
        assert router.lookup("gpt-5") == Named("other", "other")
        assert router.lookup("gpt-5:background") == Named("other", "other", background=True)
        assert router.lookup("main") == Named("main", "main")
        assert await answer_of(router, request("gpt-5")) == ("other", "fine")


@in_virtual_time
async def test_model_defaults_override_common_defaults() -> None:
    async with routing({"main": model(max_tokens=7, aliases=("alias",))}) as router:
        assert router.defaults_for("alias") == Defaults(max_tokens=7)


class _Recommending(ScriptedEngine):
    @property
    def status(self) -> EngineStatus:
        return replace(super().status, sampling={"temperature": 0.8, "top_p": 0.9})


@in_virtual_time
async def test_files_of_the_model_recommend_defaults_below_the_configuration() -> None:
    table = model(top_p=0.5)
    lane = Lane("main", table, _Recommending("main", table, clock=now), BREAKER, clock=now)
    router = Router(Config(models={"main": table}), {"main": lane}, now)
    assert router.defaults_for("main") == Defaults(temperature=0.8, top_p=0.5)


@in_virtual_time
async def test_models_are_listed_with_status() -> None:
    async with routing({"main": model(aliases=("a",)), "broken": model(load_error="file not found")}) as router:
        infos = router.models()
        assert [(info.name, info.aliases, info.status.is_ready) for info in infos] == [
            ("main", ("a",), True),
            ("broken", (), False),
        ]
        assert router.model("a").name == "main"
        assert router.status()[1].engine.detail == "file not found"


@in_virtual_time
async def test_engine_without_tokenizer_has_no_text_tools() -> None:
    async with routing(NAMES) as router:
        assert not router.has_tools("gpt-4o-mini")
        with pytest.raises(InvalidRequest, match="tokenizer of main"):
            async with router.tools("gpt-4o-mini"):
                pass


@in_virtual_time
async def test_background_suffix_makes_request_background() -> None:
    async with routing({"main": model(max_sequences=1, ttft_s=1.0)}) as router:
        order: list[str] = []

        async def ask(name: str) -> None:
            await answer_of(router, request(name))
            order.append(name)

        await asyncio.gather(*(ask(name) for name in ("main", "main:background", "main")))
        assert order == ["main", "main", "main:background"]
