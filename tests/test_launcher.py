"""The process around a trainer, with small scripts in its place."""

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from nanogpt.config import TrainConfig
from nanogpt.training.run_directory import RunDirectory, RunSpec
from server.errors import FailedPrecondition
from server.jobs.launcher import Launchers, LocalLauncher, LocalTrainer
from server.jobs.trainer_log import error_line, first_step, last_lines, log_size

SAYS_HOW_IT_WAS_STARTED = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ["GRPC_ENABLE_FORK_SUPPORT"],
                  os.environ.get("OMP_NUM_THREADS"), os.getsid(0) == os.getpid()]))
print("to stderr", file=sys.stderr)
"""

WAITS_FOR_END_OF_FILE = """
import sys
print("ready", flush=True)
sys.exit(75 if sys.stdin.read() == "" else 1)
"""

LEAVES_ON_SIGTERM = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
signal.pause()
"""

HEARS_NOTHING_AND_HAS_A_CHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


async def start(run: RunDirectory, script: str, threads: int | None = None) -> LocalTrainer:
    path = run.path / "trainer.py"
    path.write_text(script)
    return await LocalLauncher(threads, command=(sys.executable, str(path))).start(run)


async def ready(run: RunDirectory) -> list[str]:
    """The first line that the trainer printed."""
    while not run.log_path.read_text().endswith("\n"):
        await asyncio.sleep(0.01)
    return run.log_path.read_text().split()


async def gone(pid: int) -> None:
    """Returns once the process has ended, whether or not its parent knows."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)


async def test_a_trainer_gets_its_run_and_an_environment_of_its_own(run: RunDirectory) -> None:
    trainer = await start(run, SAYS_HOW_IT_WAS_STARTED, threads=3)
    assert await trainer.wait() == 0
    log = run.log_path.read_text()
    assert f'[["{run.path}", "--watch-stdin"], "0", "3", true]' in log
    assert "to stderr" in log


async def test_a_trainer_yields_to_the_server(run: RunDirectory) -> None:
    path = run.path / "trainer.py"
    path.write_text(WAITS_FOR_END_OF_FILE)
    trainer = await LocalLauncher(command=(sys.executable, str(path)), nice=7).start(run)
    assert psutil.Process(trainer.pid).nice() == min(psutil.Process().nice() + 7, 19)
    trainer.kill()
    await trainer.wait()


async def test_a_trainer_ends_before_the_server_if_memory_runs_out(run: RunDirectory) -> None:
    own = Path("/proc/self/oom_score_adj")
    if not own.exists():
        pytest.skip("this system does not rank processes")
    trainer = await start(run, WAITS_FOR_END_OF_FILE)
    score = int(Path(f"/proc/{trainer.pid}/oom_score_adj").read_text())
    assert score == min(int(own.read_text()) + 500, 1000)
    trainer.kill()
    await trainer.wait()


async def test_the_log_goes_on_after_a_restart(run: RunDirectory) -> None:
    for _ in range(2):
        assert await (await start(run, "print('hello')")).wait() == 0
    assert run.log_path.read_text() == "hello\nhello\n"


async def test_sigterm_asks_and_the_exit_code_tells(run: RunDirectory) -> None:
    trainer = await start(run, LEAVES_ON_SIGTERM)
    await ready(run)
    trainer.terminate()
    assert await trainer.wait() == 75
    trainer.terminate()  # of a trainer that has gone: nothing happens
    trainer.kill()


async def test_kill_takes_the_children_along(run: RunDirectory) -> None:
    trainer = await start(run, HEARS_NOTHING_AND_HAS_A_CHILD)
    child_pid = int((await ready(run))[1])
    trainer.terminate()
    trainer.kill()
    assert await trainer.wait() == -signal.SIGKILL
    await gone(child_pid)


async def test_the_pipe_stays_open_while_the_server_lives(run: RunDirectory) -> None:
    trainer = await start(run, WAITS_FOR_END_OF_FILE)
    await ready(run)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(trainer.wait()), 0.1)
    trainer.kill()
    assert await trainer.wait() == -signal.SIGKILL


async def test_a_dead_server_is_an_end_of_file(run: RunDirectory) -> None:
    """A server is started, starts a trainer, and is killed at once."""
    (run.path / "trainer.py").write_text(WAITS_FOR_END_OF_FILE)
    server = f"""
import asyncio, os, signal, sys
from pathlib import Path
from nanogpt.training.run_directory import RunDirectory
from server.jobs.launcher import LocalLauncher

async def main():
    launcher = LocalLauncher(command=(sys.executable, {str(run.path / "trainer.py")!r}))
    trainer = await launcher.start(RunDirectory(Path({str(run.path)!r})))
    print(trainer.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", server, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    await gone(int(output))


HOLDS_ITS_RUN = """
import signal, sys, time
from pathlib import Path
from nanogpt.training.run_directory import RunDirectory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
run = RunDirectory(Path(sys.argv[1]))
with run.lock():
    run.sign_lock()
    print("ready", flush=True)
    time.sleep(600)
"""


async def test_an_abandoned_trainer_is_killed_if_it_certainly_is_that_process(
    run: RunDirectory,
) -> None:
    trainer = await start(run, HOLDS_ITS_RUN)
    await ready(run)
    holder = run.holder()
    assert holder is not None and holder.pid == trainer.pid
    if holder.start is None:
        pytest.skip("this system does not say when a process started")
    signature = run.lock_path.read_text()
    for forged in (
        replace(holder, start="another boot:1"),  # the number was given to a later process
        replace(holder, host="elsewhere"),
        replace(holder, pid=1 << 22),  # has gone
        replace(holder, start=None),
    ):
        run.lock_path.write_text(json.dumps(asdict(forged)))
        assert not LocalLauncher().kill_abandoned(run)
    for garbage in ("", "no json", "[]", '{"pid": 1}'):
        run.lock_path.write_text(garbage)
        assert not LocalLauncher().kill_abandoned(run)
    run.lock_path.write_text(signature)
    assert LocalLauncher().kill_abandoned(run)
    assert await trainer.wait() == -signal.SIGKILL
    assert not LocalLauncher().kill_abandoned(run)


async def test_no_descriptor_is_left_behind(run: RunDirectory) -> None:
    await (await start(run, "")).wait()
    before = psutil.Process().num_fds()
    for _ in range(5):
        await (await start(run, "")).wait()
    assert psutil.Process().num_fds() == before


async def test_a_launcher_that_the_server_does_not_have(run: RunDirectory) -> None:
    launchers = Launchers({"local": LocalLauncher(command=(sys.executable, "-c", ""))})
    launchers.check(TrainConfig(processes=4))
    with pytest.raises(FailedPrecondition) as refused:
        launchers.check(TrainConfig(launcher="ray"))
    assert refused.value.message == (
        "this server has no launcher 'ray', which needs the setting ray_address; use local"
    )
    spec = RunSpec("job", "model", "dataset", TrainConfig(launcher="ray"))
    run.write_spec(spec)  # accepted by a server that had it
    with pytest.raises(OSError, match="no launcher 'ray'"):
        await launchers.start(run)
    run.write_spec(replace(spec, config=TrainConfig()))
    assert await (await launchers.start(run)).wait() == 0
    run.spec_path.write_text("{}")  # the trainer says what is wrong with it
    assert await (await launchers.start(run)).wait() == 0


async def test_a_program_that_is_not_there_is_an_error(run: RunDirectory) -> None:
    before = psutil.Process().num_fds()
    with pytest.raises(OSError):
        await LocalLauncher(command=("/no/such/program",)).start(run)
    assert psutil.Process().num_fds() == before


def test_only_the_line_for_the_user_is_read_from_the_log(run: RunDirectory) -> None:
    log = run.log_path
    assert error_line(log, 0) is None
    assert log_size(log) == 0
    log.write_text("error: of long ago\n")
    since = log_size(log)
    assert error_line(log, 0) == "of long ago"
    assert error_line(log, since) is None
    with log.open("a") as file:
        file.write("Traceback\nValueError: error: no\nerror: first\nerror: the loss was NaN\n")
    assert error_line(log, since) == "the loss was NaN"
    with log.open("ab") as file:
        file.write(b"\xff" * (1 << 17))
    assert error_line(log, since) is None  # too far up to be the last words


def test_the_log_tells_where_an_attempt_started_and_how_it_ended(run: RunDirectory) -> None:
    log = run.log_path
    assert (first_step(log, 0), last_lines(log, 0)) == (None, "")
    log.write_text("using a CPU\nstarting at step 0\nstep 1\n")
    since = log_size(log)
    assert first_step(log, 0) == 0
    assert first_step(log, since) is None
    with log.open("a") as file:
        file.write("starting at step 250\n" + "".join(f"line {i}\n" for i in range(20)))
    assert first_step(log, since) == 250
    assert last_lines(log, since).splitlines() == [f"line {i}" for i in range(10, 20)]
    with log.open("a") as file:
        file.write("x" * 5000)
    assert last_lines(log, since) == "x" * 1000
