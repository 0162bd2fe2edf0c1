"""The router as a key sees it that may use only some models."""

from __future__ import annotations

import pytest

from gateway.errors import GatewayError, ModelNotFound
from gateway.lanes.limits.key_router import KeyRouter
from tests.support.routing import answer_of, model, request, routing
from tests.support.virtual_time import in_virtual_time

BROKEN = {"ttft_s": 0.01, "faults": [{"after": 0, "error": "EngineFailed", "message": "no device"}]}


@in_virtual_time
async def test_models_that_the_key_may_not_use_do_not_exist() -> None:
    models = {"small": model("s", aliases=("tiny",)), "big": model("b", aliases=("gpt",))}
    async with routing(models) as router:
        view = KeyRouter(router, {"small"}, "laptop")
        assert [each.name for each in view.models()] == ["small"]
        assert await answer_of(view, request("TINY:latest")) == ("small", "s")
        assert view.name_for(None, "chat") == "small"
        for name in ("big", "gpt", "GPT:latest", "gpt:background", "nothing", ""):
            with pytest.raises(ModelNotFound) as caught:
                view.lookup(name)
            assert "he API key 'laptop' may use small ('models' in [limits.keys.laptop] of" in caught.value.message
            assert "big" not in caught.value.message.replace(f"'{name}'", "")
            assert caught.value.requested == name
        assert router.lookup("gpt").model == "big"


@in_virtual_time
async def test_default_model_answers_only_if_the_key_may_use_it() -> None:
    async with routing({"small": model("s"), "big": model("b")}, default_model="big") as router:
        assert await answer_of(KeyRouter(router, {"big"}, "laptop"), request("gpt-4o")) == ("big", "b")
        with pytest.raises(ModelNotFound):
            KeyRouter(router, {"big"}, "laptop").lookup("small")  # it exists, so the default does not answer for it
        with pytest.raises(ModelNotFound):
            KeyRouter(router, {"small"}, "laptop").lookup("gpt-4o")


@in_virtual_time
async def test_model_to_load_is_named_and_the_default_model_does_not_take_its_name() -> None:
    async with routing({"small": model("s"), "big": model("b")}, default_model="small") as router:
        view = KeyRouter(router, {"small"}, "laptop")
        view.check("SMALL:latest")
        for name in ("big", "nothing"):
            with pytest.raises(ModelNotFound) as caught:
                view.check(name)
            assert "may use small (" in caught.value.message


@in_virtual_time
async def test_fallback_that_the_key_may_not_use_is_passed_over() -> None:
    models = {
        "main": model(fallback="second", **BROKEN),
        "second": model("second", fallback="third"),
        "third": model("third"),
    }
    async with routing(models) as router:
        assert await answer_of(router, request("main")) == ("second", "second")
        assert await answer_of(KeyRouter(router, {"main", "third"}, "laptop"), request("main")) == ("third", "third")
        with pytest.raises(GatewayError) as caught:
            await answer_of(KeyRouter(router, {"main"}, "laptop"), request("main"))
        assert caught.value.code == "latency_breaker_open"  # the failures above have opened it


@in_virtual_time
async def test_key_without_models_is_sent_away() -> None:
    async with routing({"small": model("s")}) as router:
        with pytest.raises(ModelNotFound) as caught:
            KeyRouter(router, frozenset(), "").lookup("small")
        assert "not allowed; a client of this gateway may use no model ('models'" in caught.value.message
