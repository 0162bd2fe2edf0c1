"""`npu-gateway service install|remove|status`: start the gateway when the user logs on, and again after a failure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gateway.commands import options
from gateway.commands.service.launch import NAME, ServiceState, call, make_launch
from gateway.commands.service.systemd import SystemdService
from gateway.commands.service.task import ScheduledTask
from gateway.errors import GatewayError

_MORE = {
    "linux": "It starts when you log on. With `loginctl enable-linger` it also runs without a log-on.",
    "win32": "It starts when you log on, without a window.",
}


def add_parser(subparsers: options.Subparsers) -> None:
    text = "Start the gateway when you log on, and after a failure: a scheduled task on Windows, systemd on Linux."
    parser = subparsers.add_parser("service", help="start the gateway at log-on", description=text)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    install = actions.add_parser("install", help="install or update the service, and start it")
    options.add_config(install)
    install.set_defaults(run=run_install)
    actions.add_parser("remove", help="stop the gateway and remove the service").set_defaults(run=run_remove)
    status = actions.add_parser("status", help="is it installed, does it run, what was its last error")
    status.set_defaults(run=run_status)


def run_install(arguments: argparse.Namespace) -> int:
    service = _service()
    launch = make_launch(arguments.config)
    service.install(launch)
    print(f"{NAME} is installed as a service and starts now. {_MORE[sys.platform]}")
    print(f"It serves {' '.join(launch.arguments[4:]) or 'the delivered configuration'} in {launch.folder}.")
    print("`npu-gateway service status` and `npu-gateway logs` show what it does.")
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    if not _service().remove():
        print("No service is installed.")
        return 0
    print("The service is stopped and removed. Models, configuration and logs stay.")
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    """Exit code 0 if it is installed and complete."""
    state = _service().state()
    for line in describe(state):
        print(line)
    return 0 if state.program and state.program.exists() else 1


def describe(state: ServiceState) -> list[str]:
    """The lines of `service status`."""
    if state.program is None:
        return ["not installed: `npu-gateway service install` installs it"]
    from gateway.commands.running.run_file import running_gateways

    if not state.program.exists():
        return [f"broken: {state.program} does not exist any more. `npu-gateway service install` repairs it"]
    lines = [f"installed: {state.program}", "running" if state.is_running else "not running"]
    own = [run for run in running_gateways() if _folder(Path(run.python)) == _folder(state.program)]
    lines += [f"  {run.url}  pid {run.pid}  log {run.log_file}" for run in own if state.is_running]
    if state.failure:
        lines.append(f"last error: {state.failure}. `npu-gateway logs` shows it")
    return lines


def _folder(python: Path) -> Path:
    """The folder of a Python, behind the link of a clone. A gateway of another environment is not the service."""
    return python.parent.resolve()


def _service() -> SystemdService | ScheduledTask:
    if sys.platform == "win32":
        import psutil

        from gateway.bundles.disk import data_folder

        return ScheduledTask(psutil.Process().username(), data_folder() / "service.xml", call)
    if sys.platform == "linux":
        from gateway.config.find import config_folder

        return SystemdService(config_folder() / "systemd" / "user", call)
    raise GatewayError("There is no service for macOS. Let launchd start `npu-gateway serve`.")
