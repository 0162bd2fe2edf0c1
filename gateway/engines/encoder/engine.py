"""The engine of an encoder: texts become token ids in the prompt process, and vectors or scores in a worker process."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from gateway.bundles.encoder.bundle import EncoderInfo, load_encoder_bundle
from gateway.config.tables import LocalModel
from gateway.embedding import Inputs
from gateway.engines.base import Capability, Emit, EngineStatus, Plan, Prepared
from gateway.engines.encoder.inputs import check_known, encode
from gateway.engines.encoder.request import EmbeddingRun
from gateway.engines.local.process import Entry
from gateway.engines.local.prompts import Prompts
from gateway.engines.process_engine import ProcessEngine
from gateway.errors import BundleError, InvalidRequest
from gateway.generation import Generation, Meter, Usage
from gateway.worker.entry import encoder_worker
from gateway.worker.frames import Embed


class EncoderPrepared(Prepared, frozen=True, kw_only=True):
    plan: Plan
    ids: list[list[int]]
    firsts: list[int]
    dimensions: int


class EncoderEngine(ProcessEngine[EmbeddingRun]):
    """A bundle of an encoder on this machine, run by a worker process. Implements Engine. Args: see LocalEngine."""

    takes_turns = True

    def __init__(
        self,
        name: str,
        model: LocalModel,
        models_dir: Path,
        *,
        entry: Entry = encoder_worker,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        path = models_dir / model.path
        super().__init__(name, model, path, path, entry=entry, clock=clock)
        self._info: EncoderInfo | None = None
        with suppress(BundleError):  # `start` raises it
            self._info = load_encoder_bundle(path).info

    @property
    def status(self) -> EngineStatus:
        return replace(super().status, capabilities=self._capabilities)

    def breaker_opened(self) -> None: ...

    def free_cache(self) -> None: ...

    async def prepare(self, generation: Generation) -> EncoderPrepared:
        prompts, inputs = self._ready_prompts(), self._inputs(generation)
        assert self._info is not None
        if inputs.dimensions > self._info.dimensions:
            raise InvalidRequest(
                f"The vectors of '{self._name}' have {self._info.dimensions} dimensions; send at most that.",
                param="dimensions",
            )
        longest = self.status.context_length
        encoded = await encode(inputs, prompts, self._info, longest, generation.client)
        check_known(encoded.ids, prompts, self._info, inputs.param)
        ready = self._supervisor.ready
        plan = Plan(
            prompt_tokens=sum(map(len, encoded.ids)),
            chunk_width=ready.prompt_width if ready else longest,
            max_tokens=1,
            cut_texts=encoded.cut,
        )
        return EncoderPrepared(
            generation=generation, plan=plan, ids=encoded.ids, firsts=encoded.firsts, dimensions=inputs.dimensions
        )

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        assert isinstance(prepared, EncoderPrepared)
        self._ready_prompts()  # the worker may have died since `prepare`
        frame = Embed(
            id=next(self._ids),
            ids=prepared.ids,
            firsts=prepared.firsts,
            dimensions=prepared.dimensions,
            background=prepared.generation.background,
            client=prepared.generation.client,
        )
        is_score = self._info is not None and self._info.kind == "cross-encoder"
        run = EmbeddingRun(frame, is_score, meter, emit, self._supervisor.call_s)
        self._supervisor.send(frame)
        return await self._finish(run, meter)

    @property
    def _capabilities(self) -> tuple[Capability, ...]:
        if self._info is None:
            return ("embeddings", "rerank")
        return ("rerank",) if self._info.kind == "cross-encoder" else ("embeddings",)

    def _inputs(self, generation: Generation) -> Inputs:
        """Raises InvalidRequest for a request of another kind. Usually the router has refused it before."""
        need = {"embedding": "texts", "cross-encoder": "pairs"}[self._info.kind if self._info else "embedding"]
        if isinstance(generation.prompt, Inputs) and getattr(generation.prompt, need):
            return generation.prompt
        what = "embeddings of texts" if need == "texts" else "scores of pairs of texts"
        raise InvalidRequest(f"The model '{self._name}' makes only {what}.", param="model")

    def _open_prompts(self) -> Prompts:
        bundle = load_encoder_bundle(self._path)
        self._info = bundle.info
        return Prompts(bundle, "")
