"""The whole service in about two minutes: make a dataset, train, sample, measure, look at metrics.

Starts a server of its own on free ports, with its data in .demo/, types the commands that a user
would, and stops the server again. Needs no input and no network. Exits with 1 if anything fails.

    make demo
    NANOGPT_DEMO_MAX_ITERS=20 make demo    # fewer steps than 700: sooner done, but babbles
"""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
START_SECONDS = 60
STOP_SECONDS = 60
READY = r"serves gRPC on (?P<grpc>\S+) and http://(?P<http>\S+)"

MAX_ITERS = "NANOGPT_DEMO_MAX_ITERS"
POLL_SECONDS = 0.2

# nanoGPT's recipe for a laptop's CPU, shortened:
# https://github.com/karpathy/nanoGPT#i-only-have-a-macbook
TRAIN = (
    "train --dataset=python_reference --model=demo --n_layer=4 --n_head=4 --n_embd=128 "
    "--block_size=64 --batch_size=12 --dropout=0 --max_iters={max_iters} --lr_decay_iters=700 "
    "--eval_interval=250 --eval_iters=20 --log_interval={log_interval}"
)
TRAINING_METRICS = (
    "nanogpt_train_loss",
    "nanogpt_train_tokens_per_second",
    "nanogpt_train_mfu_ratio",
)
SERVING_METRICS = (
    "nanogpt_generation_tokens_total",
    "nanogpt_time_to_first_token_seconds_sum",
    "nanogpt_time_to_first_token_seconds_count",
    "nanogpt_inter_token_latency_seconds_sum",
    "nanogpt_inter_token_latency_seconds_count",
)
Sample = tuple[str, float]
"""A line of /metrics: name with labels, value."""


class DemoFailed(Exception):
    """A step did not do what it should; the message says which."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    grpc_address: str
    http_address: str

    def metrics(self, names: tuple[str, ...]) -> list[Sample]:
        """The lines of /metrics with these names and a value that is known."""
        opener = build_opener(ProxyHandler({}))  # this machine, whatever proxy is configured
        with opener.open(f"http://{self.http_address}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        samples = [
            (name, float(value))
            for name, _, value in (line.rpartition(" ") for line in lines)
            if name.partition("{")[0] in names
        ]
        return [sample for sample in samples if not math.isnan(sample[1])]


def main() -> None:
    began = time.monotonic()
    train = training_command(os.environ.get(MAX_ITERS, "700"))
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with running_server() as server:
        run(server, "prepare python_reference")
        while_training = run(server, train, watch=TRAINING_METRICS)
        say(
            "what Prometheus saw while it trained: MFU is the share of the processor's measured\n"
            "# peak that went into the model's own arithmetic"
        )
        show(server, while_training, TRAINING_METRICS)
        run(server, "sample --start='The for statement' --max_new_tokens=300 --seed=1337")
        run(server, "bench --concurrency=1,8 --completion_tokens=32")
        say("what Prometheus sees of the serving")
        show(server, server.metrics(SERVING_METRICS), SERVING_METRICS)
    say(
        f"done in {time.monotonic() - began:.0f} s; the model, its dataset and the run are in .demo"
    )
    say("where to go from here")
    print(
        "  python -m server --data_dir=.demo   serves this model; dashboard: http://127.0.0.1:9464\n"
        "  python -m client help               lists every command\n"
        "  README.md, docs/                    how it works, what it promises, every word explained"
    )


def training_command(max_iters: str) -> str:
    """The command that trains for so many steps and reports 20 times."""
    if not max_iters.isdecimal() or int(max_iters) < 1:
        raise DemoFailed(f"{MAX_ITERS} must be a whole number from 1, got {max_iters!r}")
    return TRAIN.format(max_iters=int(max_iters), log_interval=max(int(max_iters) // 20, 1))


@contextmanager
def running_server() -> Iterator[Server]:
    """A server on free ports. Stops it with SIGTERM; raises DemoFailed unless it ends well."""
    command = "server --data_dir=.demo --grpc_address=127.0.0.1:0 --http_address=127.0.0.1:0"
    announce(command)
    log_path = FOLDER / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            python(command), cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield wait_until_ready(process, log_path)
        say("stopping the server with SIGTERM")
    finally:
        code = stop(process)
    if code != 0:
        raise DemoFailed(f"the server ended with code {code}; see {log_path}")


def stop(process: "subprocess.Popen[bytes]") -> int:
    """Lets a server finish, or kills it if it takes too long; returns its exit code."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def wait_until_ready(process: "subprocess.Popen[bytes]", log_path: Path) -> Server:
    """The server's addresses, once it has logged them."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        ready = re.search(READY, log_path.read_text("utf-8"))
        if ready is not None:
            print(f"  gRPC {ready['grpc']}, dashboard http://{ready['http']}")
            return Server(ready["grpc"], ready["http"])
        time.sleep(0.05)
    raise DemoFailed(f"the server did not start:\n{log_path.read_text('utf-8')}")


def run(server: Server, arguments: str, watch: tuple[str, ...] = ()) -> list[Sample]:
    """Runs a command of the client to its end, its output going straight to ours.

    Returns the metrics of `watch` as they stood when all of them were last known.
    """
    announce(f"client {arguments}")
    latest: list[Sample] = []
    process = subprocess.Popen(
        python(f"client {arguments}"),
        cwd=ROOT,
        env={**environment(), "NANOGPT_SERVER": server.grpc_address},
    )
    try:
        while True:
            try:
                code = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                samples = server.metrics(watch) if watch else []
                if len(samples) == len(watch):
                    latest = samples
    finally:
        process.kill()
        process.wait()
    if code != 0:
        raise DemoFailed(f"`python -m client {arguments}` ended with code {code}")
    return latest


def show(server: Server, samples: list[Sample], names: tuple[str, ...]) -> None:
    """Prints metrics, all of which must be there."""
    print(f"$ curl -s http://{server.http_address}/metrics | grep -E '{'|'.join(names)}'")
    found = {name.partition("{")[0] for name, _ in samples}
    missing = [name for name in names if name not in found]
    if missing:
        raise DemoFailed(f"/metrics does not tell {', '.join(missing)}")
    for name, value in samples:
        print(f"{name} {value:.6g}")


def python(module_and_arguments: str) -> list[str]:
    return [sys.executable, "-m", *shlex.split(module_and_arguments)]


def environment() -> dict[str, str]:
    """Ours without settings of the service: the demo is the same everywhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NANOGPT_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def announce(module_and_arguments: str) -> None:
    print(f"\n$ python -m {module_and_arguments}", flush=True)


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except DemoFailed as failure:
        sys.exit(f"demo failed: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
