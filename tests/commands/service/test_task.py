"""The definition of the scheduled task, and the commands that manage it. Tasks themselves exist only on Windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gateway.commands.service.launch import Launch, ServiceState
from gateway.commands.service.task import ScheduledTask, task_xml
from gateway.errors import GatewayError

USER = "LAPTOP\\Jürgen"
NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
#: The parts of the published schema that the task uses: element -> the elements that it may have.
SCHEMA = {
    "Task": {"RegistrationInfo", "Triggers", "Settings", "Data", "Principals", "Actions"},
    "RegistrationInfo": {"URI", "Author", "Version", "Description", "Documentation", "Date", "Source"},
    "Triggers": {"BootTrigger", "RegistrationTrigger", "IdleTrigger", "TimeTrigger", "LogonTrigger"},
    "LogonTrigger": {"Enabled", "StartBoundary", "EndBoundary", "Repetition", "ExecutionTimeLimit", "UserId", "Delay"},
    "Principals": {"Principal"},
    "Principal": {"UserId", "LogonType", "GroupId", "DisplayName", "RunLevel", "RequiredPrivileges"},
    "Settings": {
        "AllowStartOnDemand", "RestartOnFailure", "MultipleInstancesPolicy", "DisallowStartIfOnBatteries",
        "StopIfGoingOnBatteries", "AllowHardTerminate", "StartWhenAvailable", "NetworkProfileName", "Enabled", "Hidden",
        "RunOnlyIfNetworkAvailable", "WakeToRun", "DeleteExpiredTaskAfter", "IdleSettings", "NetworkSettings",
        "ExecutionTimeLimit", "Priority", "RunOnlyIfIdle", "UseUnifiedSchedulingEngine",
    },
    "RestartOnFailure": {"Interval", "Count"},
    "Actions": {"Exec", "ComHandler", "SendEmail", "ShowMessage"},
    "Exec": {"Command", "Arguments", "WorkingDirectory"},
}  # fmt: skip


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    folder = tmp_path / "Größe & <模型>"
    folder.mkdir()
    (folder / "pythonw.exe").touch()
    arguments = ("-P", "-m", "gateway", "serve", "--config", str(folder / "my config.toml"))
    return Launch(folder / "pythonw.exe", arguments, folder)


class Schtasks:
    """Records the commands; the task exists after its creation."""

    def __init__(self, result: int = 0x41301) -> None:
        self.commands: list[str] = []
        self.definition = b""
        self.result = result

    def __call__(self, command: Sequence[str]) -> tuple[int, str]:
        assert list(command[2:4]) == ["/TN", "npu-gateway"]
        self.commands.append(command[1])
        match command[1]:
            case "/Create":
                self.definition = Path(command[5]).read_bytes()
            case "/Delete":
                self.definition = b""
            case "/Query" if self.definition:
                return 0, f'"LAPTOP","\\npu-gateway","N/A","Wird ausgeführt","Interaktiv","x","{self.result}","y"'
            case "/Query" | "/End":
                return (0, "") if self.definition else (1, "FEHLER: Die Datei wurde nicht gefunden.")
        return 0, ""


def task(schtasks: Schtasks, tmp_path: Path) -> ScheduledTask:
    return ScheduledTask(USER, tmp_path / "data" / "service.xml", schtasks)


def test_definition_follows_the_schema(launch: Launch) -> None:
    content = task_xml(launch, USER)
    assert content.startswith(b"\xff\xfe") and "encoding='utf-16'" in content.decode("utf-16").splitlines()[0].lower()
    root = ElementTree.fromstring(content)
    for element in root.iter():
        name = element.tag.removeprefix(NAMESPACE)
        children = [child.tag.removeprefix(NAMESPACE) for child in element]
        assert element.tag.startswith(NAMESPACE) and len(set(children)) == len(children)
        assert set(children) <= SCHEMA.get(name, set()), name
    context = root.find(f"{NAMESPACE}Actions")
    principal = root.find(f"{NAMESPACE}Principals/{NAMESPACE}Principal")
    assert context is not None and principal is not None and context.get("Context") == principal.get("id")


def test_definition_starts_the_gateway_without_a_window_also_on_battery(launch: Launch) -> None:
    root = ElementTree.fromstring(task_xml(launch, USER))
    texts = {element.tag.removeprefix(NAMESPACE): element.text for element in root.iter()}
    assert texts["Command"] == str(launch.program) and texts["WorkingDirectory"] == str(launch.folder)
    assert texts["Arguments"] == f'-P -m gateway serve --config "{launch.folder / "my config.toml"}"'
    assert texts["DisallowStartIfOnBatteries"] == texts["StopIfGoingOnBatteries"] == "false"
    assert texts["ExecutionTimeLimit"] == "PT0S" and texts["Interval"] == "PT1M"  # not ended after three days
    assert (texts["UserId"], texts["RunLevel"]) == (USER, "LeastPrivilege")


def test_second_install_updates_and_remove_leaves_nothing(launch: Launch, tmp_path: Path) -> None:
    schtasks = Schtasks()
    service = task(schtasks, tmp_path)
    assert service.state() == ServiceState() and not service.remove()
    service.install(launch._replace(folder=tmp_path))
    schtasks.commands.clear()
    service.install(launch)
    assert schtasks.commands == ["/End", "/Create", "/Run"] and schtasks.definition == task_xml(launch, USER)
    assert service.state() == ServiceState(launch.program, is_running=True)
    assert service.remove() and schtasks.definition == b""
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(("result", "failure"), [(0, ""), (1, "exit code 0x1"), (-1073741510, "exit code 0xc000013a")])
def test_last_result_is_in_the_state(launch: Launch, tmp_path: Path, result: int, failure: str) -> None:
    service = task(Schtasks(result), tmp_path)
    service.install(launch)
    assert service.state() == ServiceState(launch.program, is_running=False, failure=failure)


def test_refusal_of_windows_is_reported(launch: Launch, tmp_path: Path) -> None:
    service = ScheduledTask(USER, tmp_path / "service.xml", lambda command: (1, "ERROR: Access is denied."))
    with pytest.raises(GatewayError, match=r"schtasks /Create failed: ERROR: Access is denied\. Your organisation"):
        service.install(launch)


def test_python_without_windowless_program_is_refused(launch: Launch, tmp_path: Path) -> None:
    launch.program.unlink()
    with pytest.raises(GatewayError, match=r"pythonw\.exe does not exist"):
        task(Schtasks(), tmp_path).install(launch)


@pytest.mark.parametrize("name", ["a %TEMP% b", "$(Arg0)"])
def test_path_that_windows_would_change_is_refused(launch: Launch, tmp_path: Path, name: str) -> None:
    schtasks = Schtasks()
    with pytest.raises(GatewayError, match="Task Scheduler replaces"):
        task(schtasks, tmp_path).install(launch._replace(folder=tmp_path / name))
    task(schtasks, tmp_path).install(launch._replace(folder=tmp_path / "100% of $5"))
