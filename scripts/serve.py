"""Start the gateway from a fresh clone: install the pinned packages, then run `npu-gateway serve`.

    python scripts/serve.py [MODEL] [--config config.toml] [--host 127.0.0.1] [--port 8000] [--provider auto|cpu|qnn]

MODEL is what `npu-gateway pull` takes: a name of the catalog, hf:ORG/REPO, a URL, a zip. It is pulled if necessary
and served alone. A second start skips the set-up and the download. `--help` installs nothing.
"""

import check_python  # noqa: F401  first: an old Python cannot read the next file

import environment  # isort: skip
import argparse
import sys


def show_help() -> None:
    """As `npu-gateway serve --help`, which needs the packages. Exits."""
    sys.path.insert(0, str(environment.ROOT))
    from gateway.commands import serve

    parser = argparse.ArgumentParser(prog="npu-gateway")
    serve.add_parser(parser.add_subparsers())
    parser.parse_args(["serve", "--help"])


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        show_help()
    python = environment.ensure("serve")
    environment.become(environment.gateway_command(python, "serve", *sys.argv[1:]))
