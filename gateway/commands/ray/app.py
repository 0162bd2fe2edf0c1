"""`npu-gateway` as a Ray Serve application: `serve run gateway.commands.ray.app:build config=/path/config.toml`.

Two deployments: `Gateway`, whose replicas are gateways with the models of the configuration, and `Ingress`, which sends
each request to one of them. docs/ray.md has the options.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

try:
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.config import RequestRouterConfig
    from ray.serve.handle import DeploymentHandle
except ImportError as error:
    raise ImportError(
        "Ray is not installed. Install it with `pip install 'npu-gateway[ray]'`. There is no Ray for Windows on ARM: "
        "use a cluster on Linux, and give its address to this gateway as an upstream model."
    ) from error

from gateway.app import create_app
from gateway.commands import options
from gateway.commands.models.prepare import prepare
from gateway.commands.ray.call import Call
from gateway.commands.ray.ingress import Ingress as IngressApp
from gateway.commands.ray.replica import Held, Messages, Replica
from gateway.config.file import load_config
from gateway.config.tables import Config
from gateway.monitoring import logs
from gateway.monitoring.usage.history import UsageHistory
from gateway.monitoring.usage.store import UsageStore

_INGRESSES = 2  # so that one can be lost
_SLACK_S = 5.0  # after the grace period of the gateway, for last frames and the end of its processes


class Gateway:
    """One gateway, with its own models. Its construction ends when each model was tried."""

    async def __init__(self, file: str) -> None:  # type: ignore[misc]
        self._held = Held(_running(file))
        app = await self._held.enter()
        self._replica = Replica(app)
        await app.state.router.tried()

    async def forward(self, call: Call) -> AsyncGenerator[Messages, None]:
        async with aclosing(self._replica.forward(call)) as answer:
            async for messages in answer:
                yield messages

    async def __del__(self) -> None:
        await self._held.leave()


class Ingress:
    """The HTTP side; see ingress.py."""

    def __init__(self, file: str, gateway: DeploymentHandle) -> None:
        self._config = _load(file)
        self._gateway = gateway.options(stream=True, method_name="forward")

    def __serve_build_asgi_app__(self) -> Any:
        return IngressApp(self._config, self._forward, (RayActorError,))

    async def _forward(self, call: Call) -> AsyncGenerator[Messages, None]:
        answer = self._gateway.remote(call)
        try:
            async for messages in answer:
                yield messages
        finally:
            answer.cancel()  # no effect if the answer is complete


def build(arguments: dict[str, Any]) -> Any:
    """The application. Ray calls it with the `args` of a Serve configuration or of `serve run`.

    Args:
        arguments: `config`: the file, which each node has (default: as for `npu-gateway serve`). `replicas`: their
            number (default 1). `max_replicas`: up to this number, Ray adds some while there are many requests.
    """
    unknown = sorted(set(arguments) - {"config", "replicas", "max_replicas"})
    if unknown:
        raise ValueError(f"unknown argument {unknown[0][:100]!r}; there are config, replicas and max_replicas")
    file = str(arguments.get("config", ""))
    config = _load(file)
    models = config.models.values()
    least = int(arguments.get("replicas", 1))
    most = int(arguments.get("max_replicas", least))
    gateway = serve.deployment(
        Gateway,
        max_ongoing_requests=sum(model.max_sequences + model.queue for model in models),
        graceful_shutdown_timeout_s=config.server.shutdown_grace_s + _SLACK_S,
        request_router_config=RequestRouterConfig(request_router_class="gateway.commands.ray.router:PrefixRouter"),
        **_scale(least, most, sum(model.max_sequences for model in models)),
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=min(most, _INGRESSES),
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(file, gateway.bind(file))


def _scale(least: int, most: int, at_once: int) -> dict[str, Any]:
    if most <= least:
        return {"num_replicas": least}
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": at_once}}


def _load(file: str) -> Config:
    return load_config(Path(file) if file else None)


@asynccontextmanager
async def _running(file: str) -> AsyncIterator[Any]:
    """The gateway of a configuration. It has no port: Ray has it."""
    config = await asyncio.to_thread(prepare, _load(file))
    logs.setup(config.log.level, format=config.log.format)
    database = options.open_state(config)
    usage = UsageHistory(UsageStore(database, config.usage.days)) if config.usage.enabled else None
    app = create_app(config, config_file=file, usage=usage, database=database)
    with usage.writing() if usage else nullcontext():
        async with app.lifespan():
            yield app
