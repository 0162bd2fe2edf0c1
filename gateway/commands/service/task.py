"""The service on Windows: a task of the Task Scheduler that starts when the user logs on, without a console window."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from gateway.commands.service.launch import DESCRIPTION, NAME, Call, Launch, ServiceState
from gateway.errors import GatewayError

_SCHEMA = "http://schemas.microsoft.com/windows/2004/02/mit/task"
_NORMAL = "5"  # of 10; the default, 7, is below the priority of ordinary programs
_VARIABLE = re.compile(r"%[^%\n]+%|\$\(Arg\d+\)")
_RUNNING, _NOT_YET = 0x41301, 0x41303  # codes in place of a last result
_RESULT_COLUMN = 6  # of the CSV; the names of the columns are in the language of Windows
_Tree = dict[str, "str | _Tree"]


def task_xml(launch: Launch, user: str) -> bytes:
    """The definition for `schtasks /Create /XML`, in UTF-16.

    Args:
        user: DOMAIN\\NAME.
    """
    settings: _Tree = {
        "MultipleInstancesPolicy": "IgnoreNew",
        "DisallowStartIfOnBatteries": "false",
        "StopIfGoingOnBatteries": "false",
        "AllowHardTerminate": "true",
        "StartWhenAvailable": "true",
        "RestartOnFailure": {"Interval": "PT1M", "Count": "255"},
        "ExecutionTimeLimit": "PT0S",  # none
        "Priority": _NORMAL,
    }
    command: _Tree = {
        "Command": str(launch.program),
        "Arguments": subprocess.list2cmdline(launch.arguments),
        "WorkingDirectory": str(launch.folder),
    }
    parts: _Tree = {
        "RegistrationInfo": {"Description": DESCRIPTION},
        "Triggers": {"LogonTrigger": {"Enabled": "true", "UserId": user}},
        "Principals": {"Principal": {"UserId": user, "LogonType": "InteractiveToken", "RunLevel": "LeastPrivilege"}},
        "Settings": settings,
        "Actions": {"Exec": command},
    }
    root = ElementTree.Element("Task", {"version": "1.2", "xmlns": _SCHEMA})
    _add(root, parts)
    root.find("Principals/Principal").set("id", "Author")  # type: ignore[union-attr]
    root.find("Actions").set("Context", "Author")  # type: ignore[union-attr]
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-16", xml_declaration=True)
    return content


def _add(parent: ElementTree.Element, content: _Tree) -> None:
    for name, value in content.items():
        child = ElementTree.SubElement(parent, name)
        if isinstance(value, str):
            child.text = value
        else:
            _add(child, value)


class ScheduledTask:
    """The task of this user.

    Args:
        user: DOMAIN\\NAME.
        file: keeps the definition of the task. What schtasks prints lacks the characters of other code pages.
    """

    def __init__(self, user: str, file: Path, call: Call) -> None:
        self._user = user
        self._file = file
        self._call = call

    def install(self, launch: Launch) -> None:
        """Create or replace the task, and start it. One that runs is started again."""
        if found := _VARIABLE.search("\n".join([str(launch.program), *launch.arguments, str(launch.folder)])):
            what = f"replaces {found[0]!r} in a path"
            raise GatewayError(f"The Task Scheduler {what}, so this path cannot be in a task. Rename the folder.")
        if not launch.program.exists():
            raise GatewayError(f"{launch.program} does not exist. Use a Python from python.org, which has it.")
        self._call(["schtasks", "/End", "/TN", NAME])  # fails if there is none
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_bytes(task_xml(launch, self._user))
        self._schtasks("/Create", "/TN", NAME, "/XML", str(self._file), "/F")
        self._schtasks("/Run", "/TN", NAME)

    def remove(self) -> bool:
        """End the gateway and delete the task. Returns False if there was none."""
        if self.state().program is None:
            return False
        self._call(["schtasks", "/End", "/TN", NAME])
        self._schtasks("/Delete", "/TN", NAME, "/F")
        self._file.unlink(missing_ok=True)
        return True

    def state(self) -> ServiceState:
        code, text = self._call(["schtasks", "/Query", "/TN", NAME, "/V", "/FO", "CSV", "/NH"])
        if code:
            return ServiceState()
        definition = self._file.read_bytes() if self._file.exists() else b"<Task/>"
        program = Path(ElementTree.fromstring(definition).findtext(f".//{{{_SCHEMA}}}Command", ""))
        rows = list(csv.reader(text.splitlines()))
        result = int(rows[0][_RESULT_COLUMN]) & 0xFFFFFFFF if rows else 0
        failure = "" if result in (0, _RUNNING, _NOT_YET) else f"exit code {result:#x}"
        return ServiceState(program, result == _RUNNING, failure)

    def _schtasks(self, *arguments: str) -> str:
        """Returns the text of schtasks. Raises GatewayError."""
        code, text = self._call(["schtasks", *arguments])
        if code:
            reason = (text.splitlines() or ["no reason given"])[0]
            raise GatewayError(f"schtasks {arguments[0]} failed: {reason} Your organisation may not allow tasks.")
        return text
