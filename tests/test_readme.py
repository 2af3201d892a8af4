"""Every command of README.md does what it says, in the order in which a reader types them.

The server of the README runs once, on ports and in a folder of its own. `make demo` runs in a copy
of the project, as in a fresh clone. What would install packages is compared with pyproject.toml,
`make test`, which a test cannot run, with what continuous integration calls, and what needs Docker
with the file that it names.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
"""Language and contents of each fenced block."""
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
"""What a reader types, line by line."""
INLINE = re.findall(r"`((?:python|pip|make|\.) [^`]+)`", TEXT)
"""Commands in the middle of a sentence."""
SERVE = "python -m server"
DEMO_MAX_ITERS = 20


def environment(**changed: str) -> dict[str, str]:
    """A shell's, without settings of this service and of the make that may run the tests."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((PREFIX, "MAKE", "MFLAGS"))
    }
    return {**kept, **changed}


def python(command: str) -> list[str]:
    """The words of a `python ...`, with the interpreter that runs the tests."""
    name, *words = shlex.split(command)
    assert name == "python", command
    return [sys.executable, *words]


def output(words: list[str], env: dict[str, str]) -> str:
    """What a command prints to its end, which is a good one."""
    result = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}{result.stderr}"
    assert "Traceback" not in result.stderr
    return result.stdout


def make(*words: str, folder: Path = ROOT, **changed: str) -> str:
    """What `make` prints, with the environment that runs the tests in place of its own .venv."""
    command = ["make", "--old-file=.venv/.installed", f"BIN={Path(sys.executable).parent}", *words]
    result = subprocess.run(
        command, cwd=folder, env=environment(**changed), capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """gRPC and HTTP address of the README's server, which has to stop well in the end."""
    env = environment(
        NANOGPT_DATA_DIR=str(tmp_path / "data"),
        NANOGPT_GRPC_ADDRESS="127.0.0.1:0",
        NANOGPT_HTTP_ADDRESS="127.0.0.1:0",
    )
    log_path = tmp_path / "server.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            python(SERVE), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            found = re.search(r"serves gRPC on (\S+) and http://(\S+)", line)
            assert found, line + log_path.read_text()
            yield found[1], found[2]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log_path.read_text()
        finally:
            process.kill()


@pytest.mark.timeout(900)
def test_its_commands_work(server: tuple[str, str]) -> None:
    grpc_address, http_address = server
    env = environment(NANOGPT_SERVER=grpc_address)
    assert COMMANDS[0] == SERVE
    shown = {command: output(python(command), env) for command in COMMANDS[1:]}
    assert all(shown.values())

    sample = next(text for command, text in shown.items() if "client sample" in command)
    assert sample.startswith("A function")
    assert len(sample) == len("A function") + 100 + len("\n")
    jobs = shown["python -m client jobs"].splitlines()
    assert len(jobs) == 3 and all("succeeded" in line for line in jobs[1:])  # below a header
    for command in ("models", "datasets"):
        names = {line.split()[0] for line in shown[f"python -m client {command}"].splitlines()}
        assert names >= {"python_reference", "readme"}

    (program,) = [text for language, text in BLOCKS if language == "python"]
    assert "127.0.0.1:50051" in program
    program = program.replace("127.0.0.1:50051", grpc_address)
    assert len(output([sys.executable, "-c", program], env)) == 100

    metrics = httpx.get(f"http://{http_address}/metrics", trust_env=False).text
    for name in ("nanogpt_generation_tokens_total", "train_tokens_per_second", "train_mfu_ratio"):
        assert name in metrics
    page = httpx.get(f"http://{http_address}/api/jobs", trust_env=False).text
    assert "python_reference" in page


def test_commands_in_sentences_work() -> None:
    commands = [command for command in INLINE if command.startswith("python ")]
    assert commands == ["python -m client help", "python -m server --help"]
    of_client, of_server = [output(python(command), environment()) for command in commands]
    assert all(f"  {command.split()[3]} " in of_client for command in COMMANDS[1:])
    assert "--data_dir=" in of_server


@pytest.mark.timeout(900)
def test_the_demo_works_in_a_fresh_clone(tmp_path: Path) -> None:
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    text = make("demo", folder=tmp_path, NANOGPT_DEMO_MAX_ITERS=str(DEMO_MAX_ITERS))
    for step in ("prepare", "train", "sample", "bench"):
        assert f"$ python -m client {step} " in text
    assert f"step {DEMO_MAX_ITERS}/{DEMO_MAX_ITERS}" in text
    assert "\nnanogpt_train_mfu_ratio 0." in text
    assert "\n# done in " in text
    assert (tmp_path / ".demo" / "models" / "demo" / "model.safetensors").exists()


def test_tests_are_what_continuous_integration_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in script if line.startswith("make")] == ["make check", "make test"]
    assert "make test" in next(text for language, text in BLOCKS if not language)
    assert "-m pytest" in make("test", "--dry-run")


def listed_targets() -> set[str]:
    return set(re.findall(r"^make ([a-z-]+)", make("help"), re.MULTILINE))


def test_make_lists_every_command() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    parts = {"campaign-kills", "campaign-crashes"}
    assert listed_targets() == set(phony.split()) - parts - {"help"}


def test_cleaning_keeps_what_took_long(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "Makefile", tmp_path)
    kept = ["data/jobs.sqlite", "benchmarks/out/latest.json"]
    kept += [f"{name}/lib/__pycache__/x.pyc" for name in (".venv", ".venv-ray", "build/peers/vllm")]
    made = ["build/bench/weights", ".demo/x", "server/__pycache__/x.pyc", "a.egg-info/x"]
    for name in kept + made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for _ in range(2):  # nothing is left for the second one
        make("clean", folder=tmp_path)
        assert [name for name in kept + made if (tmp_path / name).exists()] == kept


def test_targets_that_documents_name_exist() -> None:
    targets = listed_targets()
    for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md"):
        text = (ROOT / name).read_text("utf-8")
        named = re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
        assert named and set(named) <= targets, name


def test_what_it_installs_is_what_the_project_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installs = [command for command in INLINE if command.startswith("pip ")]
    assert installs == ["pip install .", "pip install '.[server]'"]
    assert "server" in project["optional-dependencies"]
    assert ". .venv/bin/activate" in INLINE


def test_the_container_starts_as_its_file_says() -> None:
    (command,) = re.findall(r"`(docker [^`]+)`", TEXT)
    assert f"#   {command}\n" in (ROOT / "deploy" / "compose.yaml").read_text()


def test_addresses_and_variables_are_those_of_the_server() -> None:
    for field in ("grpc_address", "http_address"):
        assert Settings.model_fields[field].default in TEXT
    named = set(re.findall(rf"{PREFIX}([A-Z_]+)", TEXT))
    assert named and named <= {name.upper() for name in Settings.model_fields}


def test_no_block_goes_unread() -> None:
    """Beside commands and the program there are how to begin, and the tree of what is here."""
    setup, tree = [text for language, text in BLOCKS if language not in ("sh", "python")]
    assert [line.partition("#")[0].strip() for line in setup.splitlines()] == [
        "git clone <this repository> && cd nanogpt-service",
        "make demo",
        "make test",
    ]
    folders = {line.split("/")[0] for line in tree.splitlines()}
    tracked = subprocess.run(("git", "ls-files"), cwd=ROOT, capture_output=True, text=True).stdout
    assert folders == {
        name.split("/")[0]
        for name in tracked.splitlines()
        if "/" in name and not name.startswith(".")
    }
