"""Bundles for the NPU that the gateway builds while the CPU answers: which models, one piece after the other.

The pieces are in MODELS/.build/NAME-npu, so a build continues after a restart. A failure is noted in the bundle for the
CPU, and the same version of the gateway does not try it again.
"""

from __future__ import annotations

import logging
import math
import shutil
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
    BuildRequest,
    has_float_weights,
    npu_folder,
    plan_bundle,
    plan_start,
    read_failure,
    unfinished_folder,
    write_failure,
)
from gateway.child import run_in_child
from gateway.config.file import load_config
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
        self._pause_until = -math.inf
        self._path = path
        self._overrides = overrides
        self._has_npu = cache(_has_npu)
        self._begun: set[str] = set()
        self._told = ""  # what a build waits for
        self._child: int | None = None
        self._is_stopped = False

    def next(self, served: Mapping[str, ModelConfig]) -> str | None:
        if self._clock() < self._pause_until:
            return None
        with suppress(ConfigError, BundleError):
            config = self._config()
            return next((name for name, model in served.items() if self._is_waiting(config, name, model)), None)
        return None

    def advance(self, name: str, report: Callable[[str], None]) -> ModelConfig | None:
        config = self._config()
        model = config.models.get(name)
        if not isinstance(model, LocalModel):  # it was removed in the meantime
            return None
        plan = plan_bundle(model, config.models_dir, lambda: True)
        if plan.is_ready:
            return replace(model, path=str(plan.folder))
        if name not in self._begun:
            self._begun.add(name)
            _log.info("%s: a bundle for the NPU is built in the background; the CPU answers until then", name)
        step = self._step(config, name, model, report)
        if step.waits:
            self._wait(name, step.waits, report)
            return None
        self._told = ""
        if not step.folder:
            state = f"a bundle for the NPU: {step.done} of {step.count} pieces are finished"
            report(state)
            _log.info("%s: %s", name, state)
            return None
        return replace(model, path=step.folder)

    def moved(self, name: str) -> None:
        model = self._config().models.get(name)
        folder = npu_folder(Path(model.path)).name if isinstance(model, LocalModel) else name
        _log.info("%s: answers from the NPU now; its bundle is %s", name, folder)
        self._note(name, f"on the NPU since {_now()}: int4, built here, in {folder}")

    def failed(self, name: str, reason: str) -> None:
        if self._is_stopped:
            return
        model = self._config().models.get(name)
        if not isinstance(model, LocalModel):
            return
        models_dir = self._config().models_dir
        folder = models_dir / model.path
        shutil.rmtree(unfinished_folder(npu_folder(folder)), ignore_errors=True)
        with suppress(OSError):
            write_failure(folder, model.source, reason)
        _log.warning("%s: stays on the CPU: %s; %s", name, reason.rstrip("."), _NEXT_STEP)
        self._note(name, f"no bundle for the NPU ({_now()}); {_NEXT_STEP}")

    def stop(self) -> None:
        self._is_stopped = True
        if self._child is not None:
            with suppress(psutil.Error):
                psutil.Process(self._child).kill()  # its own children end with it

    # --- helpers

    def _is_waiting(self, config: Config, name: str, served: ModelConfig) -> bool:
        """True if the model is served from its bundle for the CPU, and can have one for the NPU."""
        model = config.models.get(name)
        if not (isinstance(model, LocalModel) and isinstance(served, LocalModel) and model.source):
            return False
        on_cpu = config.models_dir / model.path
        if Path(served.path) != on_cpu or not has_float_weights(model.source, config.models_dir):
            return False
        if read_failure(on_cpu, model.source) or not self._has_npu(model.provider):
            return False
        plan = plan_start(model, config.models_dir, lambda: True)
        return plan.waits_for_npu or plan.folder != on_cpu  # `models --prepare` may have built it

    def _step(self, config: Config, name: str, model: LocalModel, report: Callable[[str], None]) -> BackgroundStep:
        request = BuildRequest(
            path=model.path,
            source=model.source,
            provider=model.provider,
            activations=model.activations,
            models_dir=str(config.models_dir),
        )

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
        )
        self._child = None
        return msgspec.json.decode(reply, type=BackgroundStep)

    def _wait(self, name: str, reason: str, report: Callable[[str], None]) -> None:
        report(f"a bundle for the NPU waits: {reason}")
        self._pause_until = self._clock() + _PAUSE_S
        if self._told != name:
            _log.warning("%s: the bundle for the NPU waits: %s; close other programs", name, reason)
        self._told = name

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
