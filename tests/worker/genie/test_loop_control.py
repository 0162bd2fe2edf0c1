"""GenieLoop with the real dialog in a child process: order, cancellation, failures and power saving.

Each test reacts to the loop's frames within the loop's thread, so no result depends on timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.bundles.genie.bundle import load_genie_bundle
from gateway.errors import EngineFailed
from gateway.worker.frames import Began, Cancel, Ended, Failed, FromWorker, Prefilled, Shutdown, Submit, Tokens
from gateway.worker.genie.library import GenieDialog, PerformancePolicy, QueryEnd
from gateway.worker.genie.loop import GenieLoop
from gateway.worker.genie.mailbox import Mailbox
from tests.support.child_call import call_in_child
from tests.support.npu.genie_bundle import END
from tests.support.npu.genie_worker import GREEDY, HOT, IDS, Reference


class _Dialog(GenieDialog):
    """The real dialog. It records performance policies, and the calls in `faults` fail once."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.policies: list[str] = []
        self.on_policy: Callable[[PerformancePolicy], None] = lambda policy: None
        self.faults: list[str] = []

    def set_performance(self, policy: PerformancePolicy) -> None:
        self.policies.append(policy.name)
        super().set_performance(policy)
        self.on_policy(policy)

    def query(self, *arguments: Any) -> QueryEnd:
        self._fail("query")
        end = super().query(*arguments)
        return QueryEnd.CONTEXT_EXCEEDED if self._takes("overflow") else end

    def reset(self) -> None:
        self._fail("reset")
        super().reset()

    def _takes(self, fault: str) -> bool:
        if fault not in self.faults:
            return False
        self.faults.remove(fault)
        return True

    def _fail(self, call: str) -> None:
        if self._takes(call):
            with self._activity.device_call():
                raise EngineFailed(f"{call} failed")


class _Session:
    """A loop whose frames are recorded. `react` is called with each frame, in the loop's thread."""

    def __init__(self, dialog: _Dialog, config: Path, idle_s: float) -> None:
        self.dialog, self.mailbox = dialog, Mailbox()
        self.frames: list[FromWorker] = []
        self.react: Callable[[FromWorker], None] = lambda frame: None
        self.loop = GenieLoop(dialog, load_genie_bundle(config), self.mailbox, self._emit, idle_s=idle_s)

    def submit(
        self,
        id: int,
        ids: Sequence[int],
        max_tokens: int = 2,
        *,
        background: bool = False,
        client: str = "",
        **sampling: float,
    ) -> None:
        sampled = replace(HOT, **sampling) if sampling else GREEDY
        settings: dict[str, Any] = {"sampling": sampled, "stop_ids": [END], "background": background, "client": client}
        self.mailbox.deliver(Submit(id=id, ids=list(ids), max_tokens=max_tokens, **settings))

    def shut_down_after(self, id: int) -> None:
        self.react = lambda frame: self._shut_down_if_end(frame, id)

    def _shut_down_if_end(self, frame: FromWorker, id: int) -> None:
        if isinstance(frame, Ended | Failed) and frame.id == id:
            self.mailbox.deliver(Shutdown())

    def _emit(self, frame: FromWorker) -> None:
        self.frames.append(frame)
        self.react(frame)


@contextmanager
def _open(config: Path, idle_s: float = 600.0) -> Iterator[_Session]:
    with closing(_Dialog(load_genie_bundle(config).config)) as dialog:
        yield _Session(dialog, config, idle_s)


def _of(frames: list[FromWorker], kind: type, id: int) -> list[Any]:
    return [frame for frame in frames if isinstance(frame, kind) and frame.id == id]  # type: ignore[attr-defined]


def _tokens(frames: list[FromWorker], id: int) -> list[int]:
    return [token for frame in _of(frames, Tokens, id) for token in frame.ids]


# -- order and cancellation ---------------------------------------------------------------------------------------


def _run_with_cancel(
    config: Path, kind: type, first: Sequence[int], second: Sequence[int], max_tokens: int
) -> list[FromWorker]:
    """Two requests. The first frame of type `kind` of request 1 cancels request 1."""
    with _open(config) as session:

        def react(frame: FromWorker) -> None:
            if isinstance(frame, kind) and frame.id == 1:  # type: ignore[attr-defined]
                session.mailbox.deliver(Cancel(1))
            session._shut_down_if_end(frame, 2)

        session.react = react
        session.submit(1, first, max_tokens)
        session.submit(2, second, 12)
        session.loop.run()
        return session.frames


def test_cancelled_answer_stops_at_next_token(genie_config: Path, reference: Reference) -> None:
    second = [*IDS[:30], *reference(IDS[:30])[:1], 8, 9]
    frames = call_in_child(_run_with_cancel, genie_config, Tokens, IDS[:30], second, 80)
    assert len(_of(frames, Tokens, 1)) == 1 and not _of(frames, Ended, 1)
    assert _tokens(frames, 2) == reference(second)


def test_cancelled_prompt_stops_after_its_chunk(genie_config: Path, reference: Reference) -> None:
    frames = call_in_child(_run_with_cancel, genie_config, Prefilled, IDS[:99], IDS[:50], 12)
    assert len(_of(frames, Prefilled, 1)) == 1
    assert not _of(frames, Tokens, 1) and not _of(frames, Ended, 1)
    assert _tokens(frames, 2) == reference(IDS[:50])


def _run_queue(config: Path) -> list[int]:
    """The order in which requests end. Requests 2 to 5 arrive while request 1 runs; request 3 is cancelled."""
    with _open(config) as session:

        def react(frame: FromWorker) -> None:
            if isinstance(frame, Began) and frame.id == 1:
                session.submit(2, IDS[:20], background=True)
                for id in (3, 4, 5):
                    session.submit(id, IDS[: 20 + id])
                session.mailbox.deliver(Cancel(3))
            session._shut_down_if_end(frame, 2)

        session.react = react
        session.submit(1, IDS[:30])
        session.loop.run()
        return [frame.id for frame in session.frames if isinstance(frame, Ended)]


def test_queued_requests_run_in_order_and_background_last(genie_config: Path) -> None:
    assert call_in_child(_run_queue, genie_config) == [1, 4, 5, 2]


def _run_clients(config: Path) -> list[int]:
    """The order in which requests end. Requests 2 and 3 of the same client and 4 of another arrive during request 1."""
    with _open(config) as session:

        def react(frame: FromWorker) -> None:
            if isinstance(frame, Began) and frame.id == 1:
                for id, client in ((2, "a"), (3, "a"), (4, "b")):
                    session.submit(id, IDS[: 20 + id], client=client)
            session._shut_down_if_end(frame, 3)

        session.react = react
        session.submit(1, IDS[:30], client="a")
        session.loop.run()
        return [frame.id for frame in session.frames if isinstance(frame, Ended)]


def test_clients_take_turns(genie_config: Path) -> None:
    assert call_in_child(_run_clients, genie_config) == [1, 4, 2, 3]


# -- power saving -------------------------------------------------------------------------------------------------


def _run_idle(config: Path) -> list[str]:
    """The policies of a loop that gets its second request, and then Shutdown, while the NPU saves power."""
    with _open(config, idle_s=0.01) as session:
        dialog, mailbox = session.dialog, session.mailbox

        def on_policy(policy: PerformancePolicy) -> None:
            if policy is not PerformancePolicy.POWER_SAVER:
                return
            if len(dialog.policies) == 2:
                session.submit(2, IDS[:20])
            else:
                mailbox.deliver(Shutdown())

        dialog.on_policy = on_policy
        session.submit(1, IDS[:20])
        session.loop.run()
        return dialog.policies


def test_idle_npu_saves_power_until_next_request(genie_config: Path) -> None:
    assert call_in_child(_run_idle, genie_config) == ["BURST", "POWER_SAVER"] * 2


# -- failures -----------------------------------------------------------------------------------------------------


def _run_with_faults(config: Path, *faults: str) -> tuple[list[FromWorker], str]:
    """The frames of two requests, and the message of the error that ended the loop."""
    with _open(config) as session:
        session.dialog.faults = list(faults)
        session.shut_down_after(2)
        session.submit(1, IDS[:20])
        session.submit(2, IDS[:20])
        try:
            session.loop.run()
        except EngineFailed as error:
            return session.frames, error.message
        return session.frames, ""


@pytest.mark.parametrize(("fault", "kind"), [("query", "DeviceFailed"), ("overflow", "ContextLengthExceeded")])
def test_failed_query_ends_its_request_only(genie_config: Path, fault: str, kind: str) -> None:
    frames, error = call_in_child(_run_with_faults, genie_config, fault)
    assert [frame.kind for frame in _of(frames, Failed, 1)] == [kind]
    assert len(_of(frames, Ended, 2)) == 1 and not error


def test_failed_reset_ends_the_loop(genie_config: Path) -> None:
    frames, error = call_in_child(_run_with_faults, genie_config, "reset", "reset")
    assert [frame.id for frame in frames if isinstance(frame, Failed)] == [1]
    assert error == "reset failed"


def _run_with_bugs(config: Path) -> list[FromWorker]:
    """Request 1 is too long, which the gateway makes impossible. A frame of request 2 cannot be emitted."""
    with _open(config) as session:

        def react(frame: FromWorker) -> None:
            if isinstance(frame, Tokens) and frame.id == 2:
                raise TypeError("a bug")
            session._shut_down_if_end(frame, 4)

        session.react = react
        session.submit(1, IDS[:100], 13)
        session.submit(2, IDS[:20])
        session.submit(3, IDS[:20], 2, top_p=math.nan)
        session.submit(4, IDS[:20])
        session.loop.run()
        return session.frames


def test_failures_outside_the_device_end_their_requests_without_blame(genie_config: Path) -> None:
    frames = call_in_child(_run_with_bugs, genie_config)
    assert [(frame.id, frame.kind) for frame in frames if isinstance(frame, Failed)] == [
        (1, "GatewayError"),
        (2, "GatewayError"),
        (3, "InvalidRequest"),
    ]
    assert len(_of(frames, Ended, 4)) == 1
