"""The service on Linux: a unit of the user's systemd. It starts when the user logs on, or with lingering at boot."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.commands.service.launch import DESCRIPTION, NAME, Call, Launch, ServiceState
from gateway.errors import GatewayError, quote

UNIT = f"{NAME}.service"
_MISTAKE = 2  # exit code of a mistake in the configuration: another start does not help
_STOP_S = 30  # answers in progress get ten seconds
_NOT_TEXT = (
    r"\x00-\x1f\x7f\ud800-\udfff"  # control characters, which begin lines of the unit, and bytes that are not UTF-8
)
_NO_PROGRAM = re.compile(rf"""[{_NOT_TEXT}"'\\]""")  # systemd refuses these in a program, also escaped
_NO_FOLDER = re.compile(rf"[{_NOT_TEXT}]|[\\ ]$")  # a backslash continues the line, a space at its end is lost
_NO_ARGUMENT = re.compile(f"[{_NOT_TEXT}]")


def unit_text(launch: Launch) -> str:
    """The unit file."""
    program = quoted(str(launch.program)).replace("$$", "$")  # systemd looks for variables in the arguments only
    command = " ".join([program, *map(quoted, launch.arguments)])
    reload = " ".join([program, *(quoted("reload" if part == "serve" else part) for part in launch.arguments)])
    return f"""\
# Written by `npu-gateway service install`; `npu-gateway service remove` deletes it.
[Unit]
Description={DESCRIPTION}
StartLimitIntervalSec=0

[Service]
Type=exec
WorkingDirectory={str(launch.folder).replace("%", "%%")}
ExecStart={command}
ExecReload={reload}
Restart=on-failure
RestartSec=5
RestartPreventExitStatus={_MISTAKE}
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={_STOP_S}

[Install]
WantedBy=default.target
"""


def quoted(part: str) -> str:
    """One argument in a command line of systemd, which expands `%` and `$` also inside quotes."""
    escaped = part.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def unquoted(line: str) -> list[str]:
    """The arguments of an `ExecStart` that `unit_text` wrote."""
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
    program, *arguments = [re.sub(r"\\(.)", r"\1", part).replace("%%", "%") for part in parts] or [""]
    return [program, *(part.replace("$$", "$") for part in arguments)]


def _check(launch: Launch) -> None:
    """Raises GatewayError for a path that a unit cannot have."""
    named = [(str(launch.program), _NO_PROGRAM), (str(launch.folder), _NO_FOLDER)]
    for path, refused in (*named, *((part, _NO_ARGUMENT) for part in launch.arguments)):
        if refused.search(path):
            raise GatewayError(
                f"A unit of systemd cannot have the path {quote(path)}: it has a quote, a backslash, a control "
                "character, a space at its end, or bytes that are not UTF-8. Rename the folder."
            )


class SystemdService:
    """The unit in `folder`.

    Args:
        folder: of the user's units: ~/.config/systemd/user.
    """

    def __init__(self, folder: Path, call: Call) -> None:
        self._file = folder / UNIT
        self._call = call

    def install(self, launch: Launch) -> None:
        """Write, enable and start the unit. One that runs is started again."""
        _check(launch)
        before = self._file.read_bytes() if self._file.exists() else None
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(unit_text(launch), encoding="utf-8")
        try:
            for arguments in (("daemon-reload",), ("enable", UNIT), ("restart", UNIT)):
                self._systemctl(*arguments)
        except GatewayError:
            if before is None:
                self._file.unlink()
            raise

    def remove(self) -> bool:
        """Stop the gateway and delete the unit. Returns False if there was none."""
        if not self._file.exists():
            return False
        self._systemctl("disable", "--now", UNIT)
        self._file.unlink()
        self._systemctl("daemon-reload")
        return True

    def state(self) -> ServiceState:
        if not self._file.exists():
            return ServiceState()
        line = re.search(r"^ExecStart=(.*)$", self._file.read_text(encoding="utf-8"), re.MULTILINE)
        program = Path(next(iter(unquoted(line[1])), "")) if line else Path()
        known = self._systemctl("show", UNIT, "--property=ActiveState,Result,ExecMainStatus")
        properties = dict(text.partition("=")[::2] for text in known.splitlines())
        result, status = properties.get("Result", "success"), properties.get("ExecMainStatus", "0")
        failure = "" if result == "success" else f"{result}, exit code {status}"
        return ServiceState(program, properties.get("ActiveState") in ("active", "activating"), failure)

    def _systemctl(self, *arguments: str) -> str:
        """Returns the text of systemctl. Raises GatewayError with the next step."""
        code, text = self._call(["systemctl", "--user", *arguments])
        if code == 0:
            return text
        reason = (text.splitlines() or ["no reason given"])[0]
        if "bus" in reason:  # no session of a user, as in a container or after `su`
            raise GatewayError(
                f"systemd does not run for this user here ({reason}). Log on as this user and try again, or start "
                "`npu-gateway serve` in another way."
            )
        raise GatewayError(f"systemctl --user {' '.join(arguments)} failed: {reason}")
