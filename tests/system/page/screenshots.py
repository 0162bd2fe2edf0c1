"""Makes the pictures of the page in docs/images/. `python scripts/screenshots.py` runs it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from gateway.config.tables import BreakerConfig, Script, ScriptedModel
from gateway.monitoring.memory import Memory, MemoryReader
from tests.support.browser import Browser, browser
from tests.support.paths import ROOT
from tests.support.server import Running, config_of, serving

HERE = Path(__file__).parent
IMAGES = ROOT / "docs" / "images"
SCRIPTS = sorted(path.name for path in HERE.glob("*.mjs"))
MODEL, SLOW = "llama3.2-3b", "qwen2.5-1.5b"
#: The end of each picture's name: its width, language and colours.
LOOKS = {
    f"{theme}{end}": (width, language, theme)
    for theme in ("light", "dark")
    for end, width, language in (
        ("", 1280, "en"),
        ("-zh", 1280, "zh-CN"),
        ("-narrow", 320, "en"),
        ("-narrow-zh", 320, "zh-CN"),
    )
}
HEIGHTS = {("chat", 1280): 760, ("live", 1280): 1000, ("chat", 320): 640, ("live", 320): 640}


class OwnMemory(MemoryReader):
    """Without the browser, which is a child process here."""

    async def read(self) -> Memory:
        return Memory({}, psutil.Process().memory_info().rss / 1e6)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with (
        TemporaryDirectory() as folder,
        browser(HERE, SCRIPTS, Path(folder)) as chromium,
        serving(config_of(models()), config_file="~/npu-gateway/config.toml") as server,
    ):
        server.app.state.live.memory = OwnMemory(dict)
        for name in LOOKS:
            shoot(chromium, server, "chat", name)
        chromium.run("shots.traffic", server.url, {"models": [MODEL, SLOW], "rounds": 12})
        for name in LOOKS:
            shoot(chromium, server, "live", name)


def models() -> dict[str, ScriptedModel]:
    """A model with the replies for the pictures, in their order, and one that gets too slow."""
    replies = tuple(example(language)[1] for _, language, _ in LOOKS.values())
    ready = Script(
        replies=(*replies, *["The capital of France is Paris, on the river Seine."] * 200),
        ttft_s=(0.21, 0.24, 0.19, 0.34, 0.22, 0.2, 0.28, 0.47, 0.23),
        token_s=(0.050, 0.052, 0.049, 0.056, 0.051),
        cached_tokens=24,
        prompt_tokens=57,
    )
    slow = Script(ttft_s=(0.12, 0.13, 0.11, 0.12, 0.14, 0.9), token_s=0.024, prompt_tokens=31)
    limit = BreakerConfig(latency_ms=500, token_ms=60, min_calls=1, window=4, rate=0.25, open_s=90)
    return {
        MODEL: ScriptedModel(aliases=("gpt-4o-mini",), script=ready, breaker=BreakerConfig()),
        SLOW: ScriptedModel(script=slow, breaker=limit),
    }


def example(language: str) -> tuple[str, str]:
    """A question and its answer."""
    question, _, answer = (HERE / "shots" / f"{language}.md").read_text(encoding="utf-8").partition("\n\n")
    return question, answer


def shoot(chromium: Browser, server: Running, view: str, name: str) -> None:
    width, language, theme = LOOKS[name]
    file = str(IMAGES / f"{view}-{name}.png")
    args = {"language": language, "theme": theme, "file": file, "model": MODEL, "question": example(language)[0]}
    chromium.run(f"shots.{view}", server.url, args, viewport={"width": width, "height": HEIGHTS[view, width]})


if __name__ == "__main__":
    main()
