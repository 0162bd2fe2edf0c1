"""Start the gateway from a fresh clone: install the pinned packages, then run `npu-gateway serve`.

    python scripts/serve.py [MODEL] [--config config.toml] [--host 127.0.0.1] [--port 8000] [--provider auto|cpu|qnn]

MODEL is what `npu-gateway pull` takes: a name of the catalog, hf:ORG/REPO, a URL, a zip. It is pulled if necessary
and served alone. A second start skips the set-up and the download. `--help` installs nothing.
"""

import check_python  # noqa: F401  first: an old Python cannot read the next file

import environment  # isort: skip
import argparse
import itertools
import platform
import sys


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


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        show_help()
    python = environment.ensure("emulation" if wants_emulation(sys.argv[1:]) else "serve")
    environment.become(environment.gateway_command(python, "serve", *sys.argv[1:]))
