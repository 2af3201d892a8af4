"""What is shipped to run the server elsewhere is valid and agrees with the server."""

import re
import shutil
import subprocess
import sys
import tomllib
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.healthcheck import check, main
from server.settings import Settings, split_address

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"


def succeeds(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def tool(name: str) -> Path:
    """A command of the environment that runs the tests."""
    return Path(sys.executable).parent / name


def test_dockerfile_is_clean() -> None:
    succeeds(tool("hadolint"), DEPLOY / "Dockerfile")


def test_compose_file_is_valid() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    succeeds(tool("check-jsonschema"), *schema, DEPLOY / "compose.yaml")


def test_prometheus_configuration_is_valid() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Debian's package prometheus, is not installed")
    succeeds(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


@pytest.mark.parametrize("given", ["0", "-5", "many"])
def test_demo_refuses_a_bad_number_of_steps(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOGPT_DEMO_MAX_ITERS", given)
    command = (sys.executable, DEPLOY / "demo.py")
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    problem = f"NANOGPT_DEMO_MAX_ITERS must be a whole number from 1, got {given!r}"
    assert result.stderr == f"demo failed: {problem}\n"


def test_every_package_is_installed() -> None:
    """A folder that is not listed works in an editable install and is missing in the image."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tops = {name.split(".")[0] for name in listed}
    modules = [path for top in tops for path in (ROOT / top).rglob("*.py")]
    assert {".".join(path.parent.relative_to(ROOT).parts) for path in modules} == set(listed)


def test_image_has_the_package_and_no_more() -> None:
    """Everything that is installed is copied into the image, and nothing else is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    files = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert allowed == packages | files


def test_image_names_settings_and_ports_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    settings = dict(re.findall(r"NANOGPT_([A-Z_]+)=(\S+)", text))
    assert settings.keys() <= {name.upper() for name in Settings.model_fields}
    ports = {split_address(settings[name])[1] for name in ("GRPC_ADDRESS", "HTTP_ADDRESS")}
    exposed = re.search(r"^EXPOSE (.+)$", text, re.MULTILINE)
    assert exposed is not None and {int(port) for port in exposed[1].split()} == ports
    targets = re.findall(r"server:(\d+)", (DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert [int(port) for port in targets] == [split_address(settings["HTTP_ADDRESS"])[1]]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::]"])
def test_health_is_told_by_the_exit_code(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    servicer = health.HealthServicer()
    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(f"{host}:0")
    except RuntimeError:
        pytest.skip("this machine has no IPv6")
    server.start()
    address = f"{host}:{port}"
    try:
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        assert check(address) is None
        assert main([f"--grpc_address={address}"]) == 0
        assert capsys.readouterr().err == ""

        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert main([f"--grpc_address={address}"]) == 1
        assert capsys.readouterr().err.endswith(f":{port}: NOT_SERVING\n")
        assert (check(address, "nanogpt.v1.Nothing") or "").endswith("NOT_FOUND")
    finally:
        server.stop(None).wait()
    assert main([f"--grpc_address={address}"]) == 1
    assert main(["--grpc_address=nowhere"]) == 1
    assert "--grpc_address: must be host:port" in capsys.readouterr().err


def test_health_follows_the_variable_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOGPT_GRPC_ADDRESS", "127.0.0.1:1")
    assert main([]) == 1
