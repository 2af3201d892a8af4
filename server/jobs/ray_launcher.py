"""Starts trainers on a Ray cluster, through its Jobs REST API; it imports no Ray.

    POST /api/jobs/            entrypoint: python -m nanogpt.training.ray_driver RUN_DIR
    GET  /api/jobs/ID          PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED
    POST /api/jobs/ID/stop     SIGTERM to the driver

The cluster sees the run directories, and the datasets beside them, under the same path. How a run
ended stands in its directory; Ray's own word counts only if there is nothing there.
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

import asyncio
import http.client
import json
import logging
import secrets
import shlex
import signal
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

from nanogpt.config import TrainConfig
from nanogpt.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
CALL_SECONDS = 10.0
LOST_SECONDS = 60.0
"""How long the cluster may not answer before its run counts as crashed."""

STOP_SECONDS = 300
"""How long a driver that is asked to stop may take before Ray kills it."""

RUN_KEY = "nanogpt_run"
"""Key of Ray's metadata that says which run a submission is of."""

FINAL = ("STOPPED", "SUCCEEDED", "FAILED")


class RayJobs:
    """The Jobs API of one cluster. Every call raises OSError if the cluster does not do it."""

    def __init__(self, address: str, token: str | None = None) -> None:
        """`address` is the URL of the dashboard, such as http://127.0.0.1:8265."""
        self._url = address.rstrip("/") + "/api/jobs/"
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    async def submit(self, run: RunDirectory) -> str:
        """The id of a new submission that trains this run."""
        submission_id = f"nanogpt-{run.path.name}-{secrets.token_hex(4)}"
        path = shlex.quote(str(run.path.absolute()))
        body = {
            "submission_id": submission_id,
            "entrypoint": f"exec python -m nanogpt.training.ray_driver {path}",
            "metadata": {RUN_KEY: run.path.name},
            "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
        }
        await self._call("POST", "", body)
        return submission_id

    async def status(self, submission_id: str) -> str | None:
        """Its status in Ray's words; None if the cluster does not know it any more."""
        try:
            found = await self._call("GET", submission_id)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return str(found["status"])

    async def stop(self, submission_id: str) -> None:
        """Sends SIGTERM to the driver."""
        await self._call("POST", f"{submission_id}/stop")

    async def unfinished(self, run: RunDirectory) -> list[str]:
        """Submissions of this run that have not ended."""
        return [
            job["submission_id"]
            for job in await self._call("GET", "")
            if (job.get("metadata") or {}).get(RUN_KEY) == run.path.name
            and job["status"] not in FINAL
        ]

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers, method=method)

        def send() -> Any:
            with urllib.request.urlopen(request, timeout=CALL_SECONDS) as response:
                return json.load(response)

        try:
            return await asyncio.to_thread(send)
        except (ValueError, http.client.HTTPException) as error:
            raise OSError("the cluster's answer is no whole JSON") from error


class RayLauncher:
    """Runs trainers on a cluster."""

    def __init__(self, jobs: RayJobs) -> None:
        self._jobs = jobs

    def check(self, config: TrainConfig) -> None:
        """Any run may be for the cluster."""

    async def start(self, run: RunDirectory) -> "RayTrainer":
        """A trainer on the cluster, whose output goes to the run's log. Raises OSError."""
        await asyncio.to_thread(run.exit_code_path.unlink, missing_ok=True)
        return RayTrainer(self._jobs, await self._jobs.submit(run), run)

    async def end_abandoned(self, run: RunDirectory) -> None:
        """Stops what a dead server left on the cluster, with a checkpoint. Raises OSError."""
        for submission_id in await self._jobs.unfinished(run):
            logger.info("stopping %s, which a server that died has left", submission_id)
            with suppress(urllib.error.HTTPError):  # it has just ended
                await self._jobs.stop(submission_id)
            while await self._jobs.status(submission_id) not in (*FINAL, None):
                await asyncio.sleep(POLL_SECONDS)

    def kill_abandoned(self, run: RunDirectory) -> bool:
        """False: what holds a run on a cluster is ended by `end_abandoned`, or nobody's to kill."""
        return False


class RayTrainer:
    """A submission that is at work."""

    def __init__(self, jobs: RayJobs, submission_id: str, run: RunDirectory) -> None:
        self._jobs, self.submission_id, self._run = jobs, submission_id, run
        self._stop_asked, self._left = False, False
        self._news = asyncio.Event()

    async def wait(self) -> int:
        """The run's exit code, once the driver has ended; 1 if nobody knows how."""
        stopped, heard = False, time.monotonic()
        while not self._left:
            try:
                status = await self._jobs.status(self.submission_id)
                heard = time.monotonic()
                if status is None:
                    return 1
                if status in FINAL:
                    return await self._exit_code()
                if self._stop_asked and not stopped:
                    await self._jobs.stop(self.submission_id)
                    stopped = True
            except OSError as error:
                if time.monotonic() > heard + LOST_SECONDS:
                    logger.error("the Ray cluster does not answer: %s", error)
                    return 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), POLL_SECONDS)
            self._news.clear()
        return -signal.SIGKILL

    async def _exit_code(self) -> int:
        """What the run directory says; a shared folder may show it late."""
        for _ in range(5):
            code = await asyncio.to_thread(self._run.read_exit_code)
            if code is not None:
                return code
            await asyncio.sleep(POLL_SECONDS)
        return 1

    def terminate(self) -> None:
        """Asks it to finish its step, write a checkpoint and leave."""
        self._stop_asked = True
        self._news.set()

    def kill(self) -> None:
        """Waits for it no longer. Ray ends it STOP_SECONDS after it was asked to stop."""
        self._left = True
        self._news.set()
