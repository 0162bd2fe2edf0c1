"""Bundles for the NPU that the gateway builds while the CPU answers: which models, one piece after the other.

The pieces are in MODELS/.build/NAME-npu, so a build continues after a restart. A failure is noted in the bundle for the
CPU, and the same version of the gateway does not try it again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec.structs import replace

from gateway.bundles.stamp import (
    BackgroundStep,
    build_request,
    has_float_weights,
    npu_folder,
    plan_bundle,
    plan_start,
    read_failure,
    remove_pieces,
    unfinished_folder,
    write_failure,
)
from gateway.child import run_in_child
from gateway.config.file import load_config
from gateway.config.select import waits_for_demand
from gateway.config.tables import Config, LocalModel, ModelConfig
from gateway.errors import BundleError, ConfigError
from gateway.pull.config_edit import find_user_config, note_model
from gateway.qnn.detect import Provider, npu_for

_NEXT_STEP = "`npu-gateway models --prepare` tries it again and shows the progress"
_PAUSE_S = 300.0  # until the free memory is looked at again

_log = logging.getLogger(__name__)


class NpuBundles:
    """Implements BetterBundles.

    Args:
        path: what the user named with --config.
        overrides: of the command line.
        clock: seconds, monotonic.
    """

    def __init__(
        self, path: Path | None, overrides: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._pauses: dict[str, float] = {}  # until when
        self._path = path
        self._overrides = overrides
        self._has_npu = cache(_has_npu)
        self._served: Mapping[str, ModelConfig] = {}
        self._begun: set[str] = set()
        self._told: set[str] = set()  # models whose build waits
        self._unnoted: set[str] = set()  # failures that could not be written
        self._child: int | None = None
        self._is_stopped = False

    def next(self, served: Mapping[str, ModelConfig]) -> str | None:
        self._served, now = dict(served), self._clock()
        due = [name for name in served if now >= self._pauses.get(name, -math.inf)]
        return next((name for name in due if self._waiting(name)), None)

    def advance(self, name: str, report: Callable[[str], None]) -> ModelConfig | None:
        if (found := self._waiting(name)) is None:  # the configuration was changed in the meantime
            return None
        config, model = found
        plan = plan_bundle(model, config.models_dir, lambda: True)
        if plan.is_ready:
            return self._better(name, model, str(plan.folder))
        if name not in self._begun:
            self._begun.add(name)
            _log.info("%s: a bundle for the NPU is built in the background; the CPU answers until then", name)
        step = self._step(config, name, model, report)
        if step.waits:
            self._wait(name, step.waits, report)
            return None
        self._told.discard(name)
        if not step.folder:
            state = f"a bundle for the NPU: {step.done} of {step.count} pieces are finished"
            report(state)
            _log.info("%s: %s", name, state)
            return None
        return self._better(name, model, step.folder)

    def moved(self, name: str) -> None:
        served = self._served[name]
        folder = npu_folder(Path(served.path)).name if isinstance(served, LocalModel) else name
        _log.info("%s: answers from the NPU now; its bundle is %s", name, folder)
        self._note(name, f"on the NPU since {_now()}: int4, built here, in {folder}")

    def failed(self, name: str, reason: str) -> None:
        if self._is_stopped or (found := self._waiting(name)) is None:
            return
        config, model = found
        folder = config.models_dir / model.path
        remove_pieces(unfinished_folder(npu_folder(folder)))
        write_failure(folder, model.source, reason)
        if read_failure(folder, model.source) is None:
            self._unnoted.add(name)
        _log.warning("%s: stays on the CPU: %s; %s", name, reason.rstrip("."), _NEXT_STEP)
        self._note(name, f"no bundle for the NPU ({_now()}); {_NEXT_STEP}")

    def stop(self) -> None:
        self._is_stopped = True
        if self._child is not None:
            with suppress(psutil.Error):
                psutil.Process(self._child).kill()  # its own children end with it

    # --- helpers

    def _waiting(self, name: str) -> tuple[Config, LocalModel] | None:
        """The model as it is configured now. None: it is not served from the CPU, or can have no bundle for the NPU."""
        with suppress(ConfigError, BundleError):
            config = self._config()
            model, served = config.models.get(name), self._served[name]
            if isinstance(model, LocalModel) and self._is_waiting(config, name, model, served):
                return config, model
        return None

    def _is_waiting(self, config: Config, name: str, model: LocalModel, served: ModelConfig) -> bool:
        if not (isinstance(served, LocalModel) and model.source == served.source != "") or name in self._unnoted:
            return False
        on_cpu = config.models_dir / model.path
        if Path(served.path) != on_cpu or not has_float_weights(model.source, config.models_dir):
            return False
        if waits_for_demand(served):
            return False
        if read_failure(on_cpu, model.source) or not self._has_npu(model.provider):
            return False
        plan = plan_start(model, config.models_dir, lambda: True)
        return plan.waits_for_npu or plan.folder != on_cpu  # `models --prepare` may have built it

    def _better(self, name: str, model: LocalModel, folder: str) -> ModelConfig:
        """The model as it is served, from another bundle: the file can have changes that wait for a reload."""
        return replace(self._served[name], path=folder, provider=model.provider)

    def _step(self, config: Config, name: str, model: LocalModel, report: Callable[[str], None]) -> BackgroundStep:
        request = build_request(model, config.models_dir)

        def started(pid: int) -> None:
            self._child = pid
            if self._is_stopped:
                self.stop()

        reply = run_in_child(
            "gateway.builder.npu.background",
            request,
            f"the bundle of {name} for the NPU",
            progress=lambda stage, fraction: report(f"a bundle for the NPU: {stage}"),
            on_start=started,
            is_apart=True,
        )
        self._child = None
        return msgspec.json.decode(reply, type=BackgroundStep)

    def _wait(self, name: str, reason: str, report: Callable[[str], None]) -> None:
        report(f"a bundle for the NPU waits: {reason}")
        self._pauses[name] = self._clock() + _PAUSE_S
        if name not in self._told:
            _log.warning("%s: the bundle for the NPU waits: %s; close other programs", name, reason)
        self._told.add(name)

    def _note(self, name: str, text: str) -> None:
        try:
            note_model(find_user_config(self._path), name, text)
        except (ConfigError, BundleError) as error:
            _log.info("%s", error.message)

    def _config(self) -> Config:
        return load_config(self._path, overrides=self._overrides, may_be_empty=True)


def _has_npu(provider: Provider) -> bool:
    return npu_for(provider) is not None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M")
