"""What the gateway adds as a proxy in front of other servers.

python benchmarks/proxy.py [--litellm PROGRAM] [--quick] [--write docs/benchmarks.md]
"""

from __future__ import annotations

from pathlib import Path

from proxying import latency
from report import parser, publish


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--litellm", type=Path, metavar="PROGRAM", help="compare with this program of `litellm[proxy]`")
    arguments = made.parse_args()
    text, bars = latency.measure(latency.QUICK if arguments.quick else latency.FULL, arguments.litellm)
    publish("proxy", text, bars, arguments.write)


if __name__ == "__main__":
    main()
