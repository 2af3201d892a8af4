"""The launcher for Ray against a Jobs API of our own; a real cluster is in test_ray_cluster.py."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nanogpt.training.run_directory import ExitCode, RunDirectory
from server.jobs import ray_launcher
from server.jobs.ray_launcher import RayJobs, RayLauncher


class Cluster:
    """What Ray would know: submissions by id, and who asked."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, object]] = {}
        self.tokens: set[str | None] = set()


@pytest.fixture
def cluster() -> Iterator[tuple[Cluster, str]]:
    known = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value: object, code: int = 200) -> None:
            known.tokens.add(self.headers["Authorization"])
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/jobs/")
            if name == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"{")
            elif not name:
                self.answer(list(known.jobs.values()))
            elif name in known.jobs:
                self.answer(known.jobs[name])
            else:
                self.answer({}, 404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            name = self.path.removeprefix("/api/jobs/").removesuffix("/stop")
            if name:
                known.jobs[name]["status"] = "STOPPED"
            else:
                job = json.loads(body)
                known.jobs[job["submission_id"]] = {**job, "status": "RUNNING"}
            self.answer({})

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield known, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(ray_launcher, "POLL_SECONDS", 0.01)
    return RunDirectory(tmp_path)


async def test_a_run_is_submitted_stopped_and_its_own_word_counts(
    cluster: tuple[Cluster, str], run: RunDirectory
) -> None:
    known, address = cluster
    run.write_exit_code(ExitCode.DONE)  # of an earlier attempt
    trainer = await RayLauncher(RayJobs(address + "/", "secret")).start(run)
    assert run.read_exit_code() is None
    job = known.jobs[trainer.submission_id]
    assert job["entrypoint"] == f"exec python -m nanogpt.training.ray_driver {run.path}"
    assert job["metadata"] == {"nanogpt_run": run.path.name}
    assert known.tokens == {"Bearer secret"}
    run.write_exit_code(ExitCode.INTERRUPTED)
    trainer.terminate()
    assert await trainer.wait() == ExitCode.INTERRUPTED
    assert job["status"] == "STOPPED"


async def test_a_driver_that_says_nothing_or_is_not_known_any_more_has_crashed(
    cluster: tuple[Cluster, str], run: RunDirectory
) -> None:
    known, address = cluster
    launcher = RayLauncher(RayJobs(address))
    trainer = await launcher.start(run)
    known.jobs[trainer.submission_id]["status"] = "FAILED"
    assert await trainer.wait() == 1
    trainer = await launcher.start(run)
    known.jobs.clear()
    assert await trainer.wait() == 1


async def test_a_killed_one_is_not_waited_for(
    cluster: tuple[Cluster, str], run: RunDirectory
) -> None:
    trainer = await RayLauncher(RayJobs(cluster[1])).start(run)
    trainer.kill()
    assert await trainer.wait() == -9


async def test_what_a_dead_server_left_of_this_run_is_stopped(
    cluster: tuple[Cluster, str], run: RunDirectory
) -> None:
    known, address = cluster
    launcher = RayLauncher(RayJobs(address))
    left = await launcher.start(run)
    other = await launcher.start(RunDirectory(run.path / "other"))
    await launcher.end_abandoned(run)
    assert known.jobs[left.submission_id]["status"] == "STOPPED"
    assert known.jobs[other.submission_id]["status"] == "RUNNING"


async def test_an_answer_that_breaks_off_is_no_answer(cluster: tuple[Cluster, str]) -> None:
    with pytest.raises(OSError, match="no whole JSON"):
        await RayJobs(cluster[1]).status("cut")


async def test_a_cluster_that_is_not_there(
    run: RunDirectory, cluster: tuple[Cluster, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = RayLauncher(RayJobs("http://127.0.0.1:1"))
    with pytest.raises(OSError):
        await nowhere.start(run)
    trainer = await RayLauncher(RayJobs(cluster[1])).start(run)
    monkeypatch.setattr(ray_launcher, "LOST_SECONDS", 0.0)
    trainer._jobs = RayJobs("http://127.0.0.1:1")
    assert await trainer.wait() == 1
