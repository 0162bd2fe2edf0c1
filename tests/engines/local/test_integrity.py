"""`IntegrityCheck` finds damage in a process with low priority, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gateway.bundles import hashes
from gateway.bundles.hashes import CHECKED_FILE, HASHES_FILE, write_hashes
from gateway.engines.local.integrity import IntegrityCheck
from gateway.errors import BundleError

PATIENCE_S = 60.0


@pytest.fixture
def bundle(tiny: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns(CHECKED_FILE)
    return Path(shutil.copytree(tiny, tmp_path / "bundle", ignore=ignored))


def damage(bundle: Path, name: str = "tokenizer.json") -> None:
    content = bytearray((bundle / name).read_bytes())
    content[100] ^= 1
    (bundle / name).write_bytes(content)


async def first_damage(bundle: Path, pause_s: float = 3600.0) -> tuple[IntegrityCheck, str]:
    found: asyncio.Queue[str] = asyncio.Queue()
    check = IntegrityCheck("m", bundle, True, found.put_nowait, pause_s)
    await check.start()
    return check, await asyncio.wait_for(found.get(), PATIENCE_S)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_checked(bundle: Path) -> None:
    await until((bundle / CHECKED_FILE).exists)


async def test_damage_is_reported_once_with_the_next_step(bundle: Path) -> None:
    damage(bundle)
    size = (bundle / "tokenizer.json").stat().st_size
    check, found = await first_damage(bundle)
    where = f"tokenizer.json differs from its hash in bytes 0 to {size - 1}"
    assert found == f"the model is damaged: {where}"
    assert check.damage == (
        f"The model is damaged: {where}. Remove the folder bundle and start the gateway, which builds it again. "
        "If you changed the file yourself, `npu-gateway check --record m` accepts it."
    )
    assert check._task is not None
    await check._task  # ends by itself: one report
    await check.aclose()


async def test_damaged_model_is_refused_until_its_file_changes(bundle: Path) -> None:
    intact = (bundle / "tokenizer.json").read_bytes()
    damage(bundle)
    check, _ = await first_damage(bundle)
    for _ in range(2):
        with pytest.raises(BundleError, match=r"tokenizer\.json differs"):
            await check.require_intact()
    (bundle / "tokenizer.json").write_bytes(intact)
    await check.require_intact()
    assert check.damage == ""


async def test_new_hashes_also_end_the_refusal(bundle: Path) -> None:
    damage(bundle)
    check, _ = await first_damage(bundle)
    os.utime(bundle / HASHES_FILE)
    await check.require_intact()


async def test_file_replaced_while_served_is_found_by_the_next_check(bundle: Path) -> None:
    found: asyncio.Queue[str] = asyncio.Queue()
    check = IntegrityCheck("m", bundle, True, found.put_nowait, pause_s=0.01)
    await check.start()
    await until_checked(bundle)
    assert found.empty()
    damage(bundle, "genai_config.json")
    assert "genai_config.json differs" in await asyncio.wait_for(found.get(), PATIENCE_S)
    await check.aclose()


async def test_bundle_that_is_replaced_meanwhile_is_compared_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The damage of the old one is not that of the new one, and nothing is refused."""
    new = Path(shutil.copytree(bundle, tmp_path / "new"))
    write_hashes(new)
    damage(bundle)
    compare, found = IntegrityCheck._compare, []

    def swap() -> None:
        bundle.rename(tmp_path / "old")
        new.rename(bundle)

    async def replace(check: IntegrityCheck) -> list[hashes.Damage]:
        damages = await compare(check)
        found.append(len(damages))
        if len(found) == 1:
            swap()
        return damages

    monkeypatch.setattr(IntegrityCheck, "_compare", replace)
    check = IntegrityCheck("m", bundle, True, lambda damage: found.append(-1))
    await check.start()
    await until(lambda: len(found) == 2 and not check._is_checking)
    assert found == [1, 0] and (bundle / CHECKED_FILE).exists()
    await check.require_intact()
    await check.aclose()


async def test_intact_bundle_is_not_read_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(damage: str) -> None:
        raise AssertionError(damage)

    check = IntegrityCheck("m", bundle, True, report)
    await check.start()
    await until_checked(bundle)
    monkeypatch.setattr(sys, "executable", "/nonexistent")  # a second process would fail
    assert await check._damages() == []
    await check.aclose()


def add_weights(bundle: Path) -> None:
    """Add the file to the bundle's hashes."""
    known = hashes._read_hashes(bundle)
    assert known is not None
    entry = hashes.FileHash(size=1 << 36, sha256="", blocks=())
    hashes._write(bundle / HASHES_FILE, hashes._encoded(known.files | {"weights.bin": entry}))


async def test_close_ends_the_process(bundle: Path) -> None:
    with (bundle / "weights.bin").open("wb") as file:
        file.truncate(1 << 36)  # a sparse file that takes minutes to read
    add_weights(bundle)
    check = IntegrityCheck("m", bundle, True, lambda damage: None)
    before = set(psutil.Process().children())
    await check.start()
    await until(lambda: set(psutil.Process().children()) - before)
    started = set(psutil.Process().children()) - before
    await until(lambda: sys.platform == "win32" or all(each.nice() == 19 for each in started))
    await check.aclose()
    assert not any(each.is_running() for each in started)


async def test_process_ends_with_the_gateway(bundle: Path) -> None:
    """A gateway that is killed closes the pipe."""
    with (bundle / "weights.bin").open("wb") as file:
        file.truncate(1 << 36)
    add_weights(bundle)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.bundles.idle_check", str(bundle), stdin=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.close()
    assert await asyncio.wait_for(child.wait(), PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("program", "reason"),
    [("false", "the process ended with exit code 1"), ("echo", "JSON is malformed: invalid character (byte 1)")],
    ids=["crash", "no_json"],
)
async def test_fault_of_the_process_is_not_damage(
    program: str, reason: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which(program) or program)
    check = IntegrityCheck("m", bundle, True, lambda damage: None, pause_s=0.01)
    await check.start()
    await until(lambda: len(caplog.messages) >= 2)  # it is tried again
    assert set(caplog.messages) == {f"m: its files could not be compared with their hashes: {reason}"}
    assert check.damage == ""
    await check.aclose()
