"""What `scripts/serve.py` does, once it is known that this Python can read it."""

import argparse
import itertools
import platform
import sys

import environment


def run(arguments: list[str]) -> None:
    """Does not return."""
    if {"-h", "--help"} & set(arguments):
        show_help()
    python = environment.ensure("emulation" if wants_emulation(arguments) else "serve")
    environment.become(environment.gateway_command(python, "serve", *arguments))


def show_help() -> None:
    """As `npu-gateway serve --help`, which needs the packages. Exits."""
    sys.path.insert(0, str(environment.ROOT))
    from gateway.commands import serve

    parser = argparse.ArgumentParser(prog="npu-gateway")
    serve.add_parser(parser.add_subparsers())
    parser.parse_args(["serve", "--help"])


def wants_emulation(arguments: list[str]) -> bool:
    """`--provider qnn` on a machine without the NPU. Its packages are installed on request, because they are large."""
    is_qnn = "--provider=qnn" in arguments or ("--provider", "qnn") in itertools.pairwise(arguments)
    return is_qnn and not (sys.platform == "win32" and platform.machine() == "ARM64")
