"""The folder of a run: its specification is whole or refused, and one trainer works in it."""

import json
import subprocess
import sys
import time

import pytest

from nanogpt.config import TrainConfig
from nanogpt.option import InvalidConfig
from nanogpt.training.run_directory import (
    ExitCode,
    RunDirectory,
    RunDirectoryBusy,
    RunSpec,
)

SPEC = RunSpec(
    job_id="01abc",
    model="shakespeare",
    dataset_dir="../../datasets/shakespeare_char",
    config=TrainConfig(max_iters=10, learning_rate=3e-4),
    init_checkpoint="../../models/gpt2",
)


def test_paths(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "a")
    names = [
        path.relative_to(run.path).as_posix()
        for path in (
            run.spec_path,
            run.metrics_path,
            run.log_path,
            run.checkpoints_path,
            run.lock_path,
        )
    ]
    assert names == ["spec.json", "metrics.jsonl", "log.txt", "checkpoints", "trainer.lock"]


def test_exit_codes_are_fixed():
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "EARLY_STOPPED": 3,
        "LIMIT_REACHED": 4,
        "BAD_CONFIG": 64,
        "BAD_DATASET": 65,
        "DIVERGED": 70,
        "OUT_OF_MEMORY": 71,
        "BUSY": 73,
        "INTERRUPTED": 75,
    }


def test_a_spec_survives_the_disk(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "a")
    run.write_spec(SPEC)
    assert run.read_spec() == SPEC
    assert [path.name for path in run.path.iterdir()] == ["spec.json"]
    values = json.loads(run.spec_path.read_text())
    every_field = SPEC.config.to_mapping()  # JSON knows lists, and no tuples
    assert values["config"] == json.loads(json.dumps(every_field))


def test_a_spec_without_a_model_to_start_from(tmp_path):
    run = RunDirectory(tmp_path)
    run.spec_path.write_text(
        json.dumps({"job_id": "", "model": "m", "dataset_dir": "d", "config": {}})
    )
    spec = run.read_spec()
    assert spec.init_checkpoint is None
    assert spec.config == TrainConfig()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object"),
        ('{"job_id": "", "model": "m", "dataset_dir": "d", "config": 5}', "must be an object"),
        ('{"model": "m"}', "job_id: is missing; dataset_dir: is missing; config: is missing"),
        (
            '{"job_id": 5, "model": "m", "dataset_dir": "d", "config": {}}',
            "job_id: must be str",
        ),
        (
            '{"job_id": "", "model": "m", "dataset_dir": "d", "config": {}, "dateset": 1}',
            "dateset: unknown key; did you mean 'dataset_dir'",
        ),
        (
            '{"job_id": "", "model": "m", "dataset_dir": "d", "config": {"batch_size": 0}}',
            "batch_size: must be in",
        ),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(tmp_path, text, complaint):
    run = RunDirectory(tmp_path)
    run.spec_path.write_text(text)
    with pytest.raises(InvalidConfig) as raised:
        run.read_spec()
    assert complaint in str(raised.value)


def test_a_missing_spec(tmp_path):
    with pytest.raises(InvalidConfig, match=r"spec\.json: there is none"):
        RunDirectory(tmp_path).read_spec()


def test_one_trainer_at_a_time(tmp_path):
    run = RunDirectory(tmp_path)
    with run.lock(), pytest.raises(RunDirectoryBusy, match="another trainer"), run.lock():
        pass
    with run.lock():
        pass


def test_one_may_wait_until_another_has_left(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    other = run.lock()
    other.__enter__()
    leave = [lambda: None, lambda: other.__exit__(None, None, None)]
    monkeypatch.setattr(time, "sleep", lambda seconds: leave.pop(0)())
    with run.lock(wait_seconds=60):
        assert not leave
        with pytest.raises(RunDirectoryBusy), run.lock():
            pass


def test_a_group_holds_the_run_until_its_last_process_has_left(tmp_path):
    run = RunDirectory(tmp_path)
    with run.lead():
        for other in (run.lock, run.lead):
            with pytest.raises(RunDirectoryBusy), other():
                pass
        follower = run.follow()
        follower.__enter__()
    for other in (run.lock, run.lead):
        with pytest.raises(RunDirectoryBusy), other():
            pass
    follower.__exit__(None, None, None)
    with run.lock(), pytest.raises(RunDirectoryBusy), run.follow():
        pass


def test_the_exit_code_of_a_group(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_exit_code() is None
    run.write_exit_code(ExitCode.INTERRUPTED)
    assert run.read_exit_code() is ExitCode.INTERRUPTED
    run.exit_code_path.write_text("nonsense")
    assert run.read_exit_code() is None


def test_the_lock_goes_with_its_process(tmp_path):
    run = RunDirectory(tmp_path)
    script = (
        "import sys, pathlib; from nanogpt.training.run_directory import RunDirectory\n"
        "with RunDirectory(pathlib.Path(sys.argv[1])).lock():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunDirectoryBusy), run.lock():
            pass
        process.kill()
        process.wait()
    with run.lock():
        pass


def test_run_directories_need_no_torch():
    script = "import sys, nanogpt.training.run_directory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
