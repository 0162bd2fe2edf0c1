"""The image, the compose file and the manifests of Kubernetes: what they copy, set, probe and wait for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config.file import load_config
from gateway.config.tables import Config
from gateway.server.server import LAST_FRAME_S
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S, environment, free_port
from tests.support.server import Running, config_of, scripted, serving

KUBERNETES = ROOT / "deploy" / "kubernetes"
PAGE = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
KEY = {"NPU_GATEWAY_API_KEY": "a-key-of-the-tests-0123456789"}
PREFIX = "/opt/npu-gateway"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(config_of({"m": scripted("Hello")})) as running:
        yield running


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def arguments_of(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def variables() -> dict[str, str]:
    return dict(re.findall(r'(\w+)="?([^"\s]*)"?', " ".join(arguments_of("ENV"))))


def copied() -> list[str]:
    """The files that the image needs of the clone."""
    return [path for rest in arguments_of("COPY") if "--from" not in rest for path in rest.split()[:-1]]


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def needed_s(config: Config) -> float:
    """From SIGTERM to the end, at most."""
    return config.server.drain_s + config.server.shutdown_grace_s + LAST_FRAME_S


def test_image_copies_files_that_exist_and_are_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] == "!"}
    files = set(copied())
    assert files == kept
    assert {file for file in files if not (ROOT / file).exists()} <= {"wheels"}


def test_image_runs_as_another_user_than_root_and_writes_to_its_volumes_only() -> None:
    assert arguments_of("USER") == ["10001:10001"]
    volumes = arguments_of("VOLUME")[0].split()
    paths = {value for name, value in variables().items() if value.startswith("/") and name != "PATH"}
    assert all(any(path == v or path.startswith(f"{v}/") for v in volumes) for path in paths)
    assert arguments_of("ENTRYPOINT") == ['["python", "-P", "-m", "gateway"]'], "SIGTERM reaches the gateway itself"


def test_settings_of_the_image_are_those_of_the_gateway() -> None:
    settings = {name: value for name, value in variables().items() if name.startswith("NPU_GATEWAY_")}
    config = load_config(ROOT / "config.toml", environ={**settings, **KEY})
    assert (config.server.host, config.log.file) == ("0.0.0.0", "")
    assert arguments_of("EXPOSE") == [str(config.server.port)]


def test_health_check_of_the_image_asks_the_gateway(server: Running) -> None:
    command = yaml.safe_load(arguments_of("HEALTHCHECK")[0].partition("CMD ")[2])
    codes = [
        subprocess.run(
            [sys.executable, *command[1:]],
            env=environment(NPU_GATEWAY_SERVER_PORT=str(port)),
            capture_output=True,
            timeout=PATIENCE_S,
        ).returncode
        for port in (server.port, free_port())
    ]
    assert command[0] == "python" and codes == [0, 1]


def test_lock_file_of_the_image_has_the_versions_of_the_clone() -> None:
    def pins(file: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9-]+==\S+", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))

    more = pins("requirements-container.lock") - pins("requirements.lock")
    assert pins("requirements.lock") <= pins("requirements-container.lock")
    assert any(pin.startswith("pg8000==") for pin in more) and len(more) < 6


def test_compose_file_lets_each_gateway_stop_in_its_time() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    gateways = {name: each for name, each in compose["services"].items() if each["image"] == "npu-gateway"}
    assert gateways.keys() == {"gateway-1", "gateway-2", "balancer"}
    for name, service in gateways.items():
        settings = {key: value for key, value in service["environment"].items() if "${" not in value}
        settings.pop("NPU_GATEWAY_CONFIG", None)
        file = ROOT / ("deploy/balancer.toml" if name == "balancer" else "config.toml")
        config = load_config(file, environ={**settings, **KEY})
        assert seconds(service["stop_grace_period"]) > needed_s(config) + 5
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
    models = load_config(ROOT / "deploy/balancer.toml", environ=KEY).models
    [targets] = [getattr(model, "targets", ()) for model in models.values()]
    assert [re.sub(r".*//([^:]+):.*", r"\1", target.url) for target in targets] == ["gateway-1", "gateway-2"]
    assert set(models) <= set(load_config(ROOT / "config.toml", environ={}).models)


def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((KUBERNETES / "gateway.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def test_pod_gives_the_gateway_the_time_that_its_configuration_takes() -> None:
    config = load_config(KUBERNETES / "config.toml", environ=KEY)
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    assert config.server.drain_s >= 5, "endpoints of a Service are removed with a delay"
    assert pod["terminationGracePeriodSeconds"] > needed_s(config) + 5


def test_probes_and_service_reach_the_gateway(server: Running) -> None:
    deployment, service = kubernetes()["Deployment"]["spec"], kubernetes()["Service"]["spec"]
    [container] = deployment["template"]["spec"]["containers"]
    probes = {name: probe["httpGet"] for name, probe in container.items() if name.endswith("Probe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    with server.http(headers={"host": "10.0.0.7:8000"}) as http:
        assert {http.get(probe["path"]).status_code for probe in probes.values()} == {200}
    [port] = container["ports"]
    assert str(port["containerPort"]) in arguments_of("EXPOSE")
    assert {probe["port"] for probe in probes.values()} | {service["ports"][0]["targetPort"]} == {port["name"]}
    assert service["selector"] == deployment["selector"]["matchLabels"]
    assert service["selector"].items() <= deployment["template"]["metadata"]["labels"].items()


def test_pod_mounts_what_a_read_only_image_writes() -> None:
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
    assert f"{container['securityContext']['runAsUser']}:{pod['securityContext']['fsGroup']}" in arguments_of("USER")
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {*arguments_of("VOLUME")[0].split(), "/tmp"} <= mounts.keys()
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    [config] = [each["value"] for each in container["env"] if each["name"] == "NPU_GATEWAY_CONFIG"]
    assert str(Path(config).parent.as_posix()) in mounts


def test_page_names_the_files_and_options_of_the_image() -> None:
    assert f"-r {next(file for file in copied() if file.endswith('.lock'))}" in PAGE
    assert f"BASE={arguments_of('ARG')[0].removeprefix('BASE=')}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert arguments_of("ARG")[0].removeprefix("BASE=") in PAGE
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    profiles = {profile for service in compose["services"].values() for profile in service.get("profiles", [])}
    assert set(re.findall(r"--profile (\w+)", PAGE)) == profiles
    assert set(re.findall(r"docker compose restart (\S+)", PAGE)) <= compose["services"].keys()
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text(encoding="utf-8")))
    assert used - {"PORT"} <= set(re.findall(r"(\w+)=", PAGE))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the commands are those of a shell on Linux")
def test_build_commands_of_the_image_make_a_gateway(tmp_path: Path) -> None:
    """Without a container: the commands that fill `wheels` and the RUN instructions, in a folder of their own."""
    source, target = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    download = re.search(r"python3 (-m pip download .*)$", PAGE, re.MULTILINE)
    assert download
    subprocess.run([sys.executable, *download[1].split()], cwd=ROOT, check=True, env={**os.environ, "PIP_QUIET": "1"})
    for word, rest in instructions()[: [word for word, _ in instructions()].index("FROM", 2)]:
        if word == "RUN":
            command = rest.replace(PREFIX, str(target)).replace("python3 -m venv", f"{sys.executable} -m venv")
            offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
            subprocess.run(command, shell=True, cwd=source, check=True, env=offline)
        elif word == "COPY":
            *names, to = rest.split()
            for name in names:
                position = source / to / ("" if (ROOT / name).is_dir() else Path(name).name)
                position.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(ROOT / name, source / to) if (ROOT / name).is_dir() else shutil.copy(
                    ROOT / name, position
                )
    done = subprocess.run(
        [target / "bin" / "python", "-P", "-m", "gateway", "version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.startswith("npu-gateway "), done.stderr
