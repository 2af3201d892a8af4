"""Every command against a server with canned answers: what it sends, prints and exits with."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import grpc
import pytest
from fake_server import MAX_ITERS, WORDS, Break, FakeServer, job, recorded_events, rich_status
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details_pb

from client.cli import main
from client.commands import figures
from client.commands.events import event_text
from client.commands.output import as_json
from client.commands.prepare import dataset_name
from client.exit_code import ExitCode
from client.repetition import MAX_ATTEMPTS
from protos.nanogpt.v1.datasets_pb2 import (
    TOKENIZER_CHAR,
    TOKENIZER_GPT2,
    CreateDatasetRequest,
    DatasetInProgress,
    DatasetSpec,
)
from protos.nanogpt.v1.inference_pb2 import BenchmarkRequest, GenerateRequest, ScoreRequest
from protos.nanogpt.v1.models_pb2 import LoadModelRequest
from protos.nanogpt.v1.training_pb2 import (
    Job,
    ListJobsRequest,
    PauseJobRequest,
    Skipped,
    StateChange,
    StreamLogsRequest,
    StreamMetricsRequest,
    StreamMetricsResponse,
    TrainRequest,
)

ROOT = Path(__file__).parent.parent
SEPARATOR = "-" * 50


@pytest.fixture
def server(monkeypatch):
    with FakeServer() as server:
        monkeypatch.setenv("NANOGPT_SERVER", server.address)
        yield server


@pytest.fixture
def run(capsys):
    """Runs a command in this process: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def start(*words: str, **options) -> subprocess.Popen:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "client", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def buffered() -> dict[str, str]:
    """The environment of a shell, where Python may keep its output until it exits."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# sample


def test_sample_sends_the_gems_defaults(server, run):
    code, out, err = run("sample")
    assert (code, out) == (0, "\n" + "".join(WORDS) + "\n")
    assert err == "bard at step 2,000, seed 7\n"
    (request,) = server.asked(GenerateRequest)
    assert (request.prompt, request.model, request.num_samples) == ("\n", "", 1)
    assert request.stopping.max_new_tokens == 500
    assert request.sampling.temperature == pytest.approx(0.8)
    assert request.sampling.top_k == 200
    for unset in ("top_p", "min_p", "seed"):
        assert not request.sampling.HasField(unset)


def test_sample_sends_what_it_is_told(server, run, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Où êtes-vous ?", "utf-8")
    run(
        "sample",
        f"--start=FILE:{prompt}",
        "--out_dir=job:j1",
        "--top_p=0.9",
        "--min_p=0.05",
        "--seed=42",
        "--stop=\n\n",
        "--temperature=0",
    )
    (request,) = server.asked(GenerateRequest)
    assert (request.prompt, request.model) == ("Où êtes-vous ?", "job:j1")
    assert request.sampling.top_p == pytest.approx(0.9)
    assert request.sampling.min_p == pytest.approx(0.05)
    assert request.sampling.seed == 42
    assert request.sampling.HasField("temperature") and request.sampling.temperature == 0
    assert request.stopping.stop_strings == ["\n\n"]


def test_sample_sends_how_it_is_to_be_served(server, run):
    run("sample", "--priority=5", "--use_prefix_cache=false", "--max_draft_tokens=4", "--echo")
    (request,) = server.asked(GenerateRequest)
    assert (request.priority, request.max_draft_tokens) == (5, 4)
    assert request.HasField("use_prefix_cache") and not request.use_prefix_cache
    assert request.response.echo and not request.response.HasField("prompt_logprobs")


def test_score_says_how_likely_a_text_is(server, run, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Où êtes-vous ?", "utf-8")
    code, out, _ = run("score", f"FILE:{path}", "--model=bard", "--top_logprobs=2")
    assert code == 0
    assert out == (
        "1 tokens at step 2,000: loss 1.5000 nats a token, perplexity 4.482, 2.1640 bits a byte\n"
    )
    (request,) = server.asked(ScoreRequest)
    assert (request.text, request.model, request.top_logprobs) == ("Où êtes-vous ?", "bard", 2)
    code, out, _ = run("score", "--json", "once")
    assert objects(out)[0]["logprobs"][0]["rank"] == 2


def test_a_model_is_loaded_in_a_precision(server, run):
    code, _, _ = run("load", "bard", "--precision=int8")
    (request,) = server.asked(LoadModelRequest)
    assert (code, request.name, request.precision) == (0, "bard", "int8")


def test_several_samples_come_whole_and_in_order(server, run):
    _, out, _ = run("sample", "--num_samples=3", "--start=>")
    samples = out.removesuffix("\n").split(f"\n{SEPARATOR}\n")
    assert samples == [">" + "".join(f"{i}{word}" for word in WORDS) for i in range(3)]


def test_tokens_are_printed_as_they_arrive(server):
    process = start("sample", "--start=hold", stdout=subprocess.PIPE)
    shown = ""
    while not shown.endswith(WORDS[0]):  # the server holds the rest back
        shown += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert shown == "hold" + WORDS[0]
    assert process.returncode == ExitCode.INTERRUPTED
    assert err.endswith("interrupted\n")
    assert server.generate_ended.wait(5)


def test_who_waits_is_told_behind_how_many(server, run):
    _, out, err = run("sample", "--start=wait")
    assert out == "wait" + "".join(WORDS) + "\n"
    said = ["waiting behind 1,234 others", "waiting behind 1 other", "next in the queue"]
    assert err.splitlines()[:3] == said


def test_sample_as_json_is_the_stream(server, run):
    code, out, err = run("sample", "--json", "--seed=18446744073709551615")
    assert (code, err) == (0, "")
    started, *deltas, finished = objects(out)
    assert started["started"]["sampling"]["seed"] == 2**64 - 1
    assert started["started"]["sampling"]["temperature"] == 0.8
    assert [delta["delta"]["text"] for delta in deltas] == list(WORDS)
    assert finished["finished"]["usage"]["completion_tokens"] == 3


def test_a_failure_in_the_middle_ends_the_text_first(server, run):
    code, out, err = run("sample", "--start=fail")
    assert (code, out) == (1, "fail" + WORDS[0] + "\n")
    assert "model bard is damaged" in err and "operator" in err


def test_a_refused_sample_prints_no_text(server, run):
    server.failures["Generate"].append(rich_status(grpc.StatusCode.NOT_FOUND, "there is no model"))
    code, out, err = run("sample")
    assert (code, out) == (ExitCode.FAILED, "")
    assert err.startswith("error: there is no model\n")


@pytest.mark.parametrize("words", [["sample", "--json"], ["version"]])
def test_a_reader_that_leaves_early_is_no_error(server, words):
    with start(*words, stdout=subprocess.PIPE, env=buffered()) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == ExitCode.FAILED


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
@pytest.mark.parametrize("words", [["sample"], ["version"]])
def test_output_that_cannot_be_written_is_an_error(server, words):
    with open("/dev/full", "w") as full, start(*words, stdout=full, env=buffered()) as process:
        err = process.stderr.read()
    assert process.returncode == ExitCode.FAILED
    assert "error: " in err and "No space left on device" in err and "Traceback" not in err


# train and watch


def test_train_sends_only_what_was_given(server, run, tmp_path):
    file = tmp_path / "run.json"
    file.write_text('{"dataset": "plays", "dropout": 0.0}')
    code, _, _ = run("train", f"--config={file}", "--preset=train_gpt2", "--compile=False")
    assert code == 0
    (request,) = server.asked(TrainRequest)
    assert (request.dataset, request.preset, request.model) == ("plays", "train_gpt2", "")
    assert {field.name: value for field, value in request.config.ListFields()} == {
        "dropout": 0.0,
        "compile": "off",
    }


def test_train_follows_the_job_in_plain_lines(server, run):
    code, out, err = run("train", "--dataset=plays", "--max_iters=30")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "job new1 trains bard on plays, after 2 others",
        "  max_iters = 30 (request)",
        "state: running",
        "10,745,088 parameters on cpu (a [fast] one), float32; "
        "char tokens: 1,000 train, 100 val; 30 steps of 64",
        "step 10/30  loss 3.0000  12,345 tokens/s  MFU 12.3 %  0:10 left",
        "step 20/30  loss 2.0000  12,345 tokens/s  MFU 12.3 %  0:05 left",
        "step 30/30  loss 1.0000  12,345 tokens/s  MFU 12.3 %  0:00 left",
        "step 30: train loss 1.0000, val loss 1.2500, the best so far",
        "step 30: checkpoint of 43.1 MB",
        "step 30: wrote 'To be\\nor'",
        "state: succeeded",
        "Try it: python -m client sample --model=bard",
    ]


def test_train_tells_how_many_jobs_come_first(server, run):
    lines = []
    for server.queue_position in range(3):
        lines.append(run("train", "--dataset=plays", "--detach")[1].splitlines()[0])
    assert lines == [
        "job new1 trains bard on plays",
        "job new2 trains bard on plays, after 1 other",
        "job new3 trains bard on plays, after 2 others",
    ]


def test_train_may_leave_the_job_alone(server, run):
    code, out, _ = run("train", "--dataset=plays", "--detach")
    assert code == 0
    assert "python -m client watch new1" in out and "python -m client cancel new1" in out
    assert not server.asked(StreamMetricsRequest)


def test_train_as_json_is_the_job_and_its_events(server, run):
    code, out, _ = run("train", "--dataset=plays", "--json")
    queued, state, *events, heartbeat, end = objects(out)
    assert code == 0
    assert (queued["id"], queued["state"], queued["config"]["max_iters"]) == (
        "new1",
        "STATE_QUEUED",
        MAX_ITERS,
    )
    assert state["state_change"]["state"] == "STATE_RUNNING"
    assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert heartbeat["heartbeat"] == {}
    assert end["state_change"]["state"] == "STATE_SUCCEEDED"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (
            StateChange(
                state=Job.STATE_FAILED, reason=Job.REASON_DIVERGED, error="The loss is NaN."
            ),
            "error: job new1 failed (diverged): The loss is NaN.\n",
        ),
        (
            StateChange(state=Job.STATE_CANCELLED, reason=Job.REASON_REQUESTED),
            "error: job new1 cancelled (requested)\n",
        ),
    ],
)
def test_a_job_that_does_not_succeed_is_a_failure(server, run, end, text):
    server.end = end
    code, _, err = run("train", "--dataset=plays")
    assert (code, err) == (ExitCode.FAILED, text)


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE])
def test_a_job_that_may_be_queued_can_be_asked_for_again(server, run, code):
    server.failures["Train"].extend([rich_status(code, "gone")] * MAX_ATTEMPTS)
    _, _, err = run("train", "--dataset=plays")
    request_id = server.asked(TrainRequest)[-1].request_id
    assert err.splitlines()[-1] == (
        "The job may be queued all the same. "
        f"The same command with --request_id={request_id} does not queue it twice."
    )
    server.failures["Train"].clear()
    run("train", "--dataset=plays", "--detach", f"--request_id={request_id}")
    assert list(server.jobs_by_request_id) == [request_id]


def test_watch_starts_where_it_is_told(server, run):
    code, out, _ = run("watch", "j1", "--start_sequence=5", "--json")
    assert code == 0
    assert [e["sequence"] for e in objects(out) if "sequence" in e] == [5, 6, 7]


@pytest.mark.parametrize("number", [-1, 0])
def test_watch_leaves_the_judgement_of_a_number_to_the_server(server, run, number):
    run("watch", "j1", f"--start_sequence={number}")
    (request,) = server.asked(StreamMetricsRequest)
    assert request.start_sequence == number


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_go_on(server):
    server.breaks.append(Break(after=2))  # then silent
    process = start("train", "--dataset=plays", stdout=subprocess.PIPE)
    while not process.stdout.readline().startswith("step 10/30"):
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "python -m client watch new1" in err and "python -m client cancel new1" in err


def test_a_lost_connection_shows_and_heals(server, run, caplog):
    status = rich_status(grpc.StatusCode.UNAVAILABLE, "stopping")
    server.breaks.append(Break(2, status))
    code, out, _ = run("watch", "j1")
    assert code == 0
    assert sum(line.startswith("step ") for line in out.splitlines()) == 6
    assert "asking again from number 3" in caplog.text


def test_a_terminal_shows_a_progress_bar(server):
    controller, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = start("watch", "j1", stdout=terminal, env=env)
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(controller, 65536):
            shown += data
    except OSError:  # Linux's end of file for a terminal that nobody holds open
        pass
    os.close(controller)
    assert process.communicate(timeout=10)[1] == ""
    assert process.returncode == 0
    text = shown.decode()
    for expected in (
        "10,745,088 parameters",
        "30/30",
        "loss 1.0000",
        "val 1.2500",
        "12,345 tokens/s",
        "MFU 12.3 %",
        "a [fast] one",
        "state: succeeded",
    ):
        assert expected in text


# prepare


def test_prepare_uploads_a_file(server, run, tmp_path):
    path = tmp_path / "Alice's Book.txt"
    path.write_bytes(b"text" * 500_000)
    code, out, err = run(
        "prepare", "textfile", str(path), "--tokenizer=gpt2", "--val_ratio=0.2", "--encoding=cp1252"
    )
    assert (code, err) == (0, "")
    assert out.startswith("dataset alice_s_book: 2,000,000 characters")
    first, *rest = server.asked(CreateDatasetRequest)
    assert (first.spec.name, first.spec.tokenizer) == ("alice_s_book", TOKENIZER_GPT2)
    assert (first.spec.val_ratio, first.spec.encoding) == (0.2, "cp1252")
    assert b"".join(message.text for message in rest) == path.read_bytes()


def test_prepare_names_the_dataset_as_told(server, run, tmp_path):
    path = tmp_path / "text"
    path.write_text("text")
    code, out, _ = run("prepare", "textfile", str(path), "--output=plays", "--json")
    assert code == 0
    assert objects(out)[0]["name"] == "plays"


def test_prepare_uploads_documents(server, run, tmp_path):
    path = tmp_path / "web.jsonl"
    path.write_text('{"body": "text"}')
    code, _, _ = run("prepare", "jsonl", str(path), "--text_field=body", "--max_docs=7")
    assert code == 0
    first, text = server.asked(CreateDatasetRequest)
    assert (first.spec.name, first.spec.format) == ("web", DatasetSpec.FORMAT_JSONL)
    assert (first.spec.text_field, first.spec.max_documents) == ("body", 7)
    assert (first.spec.val_ratio, first.spec.tokenizer) == (0.1, TOKENIZER_CHAR)
    assert text.text == path.read_bytes()


def test_prepare_sends_a_folder_as_an_archive(server, run, tmp_path):
    folder = tmp_path / "My Books"
    folder.mkdir()
    (folder / "b.txt").write_text("two")
    (folder / "a.txt").write_text("one")
    (folder / "notes.md").write_text("not sent")
    assert run("prepare", "folder", str(folder), "--tokenizer=gpt2")[0] == 0
    first, *rest = server.asked(CreateDatasetRequest)
    assert (first.spec.name, first.spec.format) == ("my_books", DatasetSpec.FORMAT_TAR)
    with tarfile.open(fileobj=io.BytesIO(b"".join(r.text for r in rest))) as sent:
        assert sent.getnames() == ["a.txt", "b.txt"]


def test_prepare_openwebtext_has_the_tokenizer_and_split_of_nanogpt(server, run, tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert run("prepare", "openwebtext", str(tmp_path))[0] == 0
    assert run("prepare", "openwebtext", str(tmp_path), "--val_ratio=0.01", "--output=owt")[0] == 0
    specs = [r.spec for r in server.asked(CreateDatasetRequest) if r.HasField("spec")]
    assert [(s.name, s.val_ratio) for s in specs] == [("openwebtext", 0.0005), ("owt", 0.01)]
    assert {s.tokenizer for s in specs} == {TOKENIZER_GPT2}


def test_prepare_follows_the_server_on_a_terminal(server, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    server.making = DatasetInProgress(
        name="a", phase=DatasetInProgress.PHASE_TOKENIZING, bytes_done=5, bytes_total=10
    )
    main_end, child_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "client", "prepare", "textfile", str(path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=child_end,
        env={**os.environ, "NANOGPT_SERVER": server.address, "COLUMNS": "120"},
    )
    os.close(child_end)
    shown = b""
    while b"tokenizing" not in shown:
        shown += os.read(main_end, 4096)
    server.finish_making.set()
    assert process.wait(20) == 0
    os.close(main_end)
    assert b"uploading a.txt" in shown


def test_prepare_shows_warnings_apart(server, run, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    server.warnings = ["The text is short."]
    code, out, err = run("prepare", "textfile", str(tmp_path / "a.txt"))
    assert (code, err) == (0, "warning: The text is short.\n") and "short" not in out


@pytest.mark.parametrize("name", ["python_reference", "shakespeare_char", "shakespeare"])
def test_prepare_asks_for_what_ships(server, run, name):
    assert run("prepare", name)[0] == 0
    (request,) = server.asked(CreateDatasetRequest)
    assert (request.spec.shipped, request.spec.name) == (name, "")
    assert not request.spec.HasField("val_ratio") and not request.spec.tokenizer


def test_prepare_sends_a_local_copy_of_what_ships(server, run, tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("First Citizen")
    code, _, _ = run("prepare", "shakespeare", f"--file={path}", "--output=bard")
    assert code == 0
    first, text = server.asked(CreateDatasetRequest)
    assert (first.spec.shipped, first.spec.name) == ("shakespeare", "bard")
    assert text.text == b"First Citizen"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("alice.txt", "alice"),
        ("Alice's Book.txt", "alice_s_book"),
        ("_Œuvre 2.tar.gz", "uvre_2_tar"),
        ("a" * 100, "a" * 63),
    ],
)
def test_names_of_datasets_are_made_of_names_of_files(file, name):
    assert dataset_name(Path("/some/where") / file) == name


# bench


def test_bench_shows_a_row_for_each_concurrency(server, run):
    code, out, _ = run("bench", "--concurrency=1,4", "--model=bard", "--seed=3")
    assert code == 0
    assert out.startswith("cpu (a [fast] one), float32, 2 threads, 100 GFLOP/s\n")
    rows = [line.split() for line in out.splitlines() if line.lstrip()[:1].isdigit()]
    assert [row[:3] for row in rows] == [["1", "4", "100.0"], ["4", "16", "400.0"]]
    assert "1.0 / 2.0 / 3.0" in out and "25.0 %" in out
    (request,) = server.asked(BenchmarkRequest)
    assert (request.inference.model, request.inference.seed) == ("bard", 3)


def test_bench_says_whether_a_result_is_stable_and_good(server, run):
    options = ("--max_windows=5", "--time_to_first_token_objective_seconds=0.25")
    _, out, _ = run("bench", "--concurrency=1,8", *options)
    rows = [line.strip() for line in out.splitlines() if line.lstrip()[:1].isdigit()]
    assert "1.50/s" in rows[0] and rows[0].endswith("5 stable")
    assert rows[1].endswith("5 UNSTABLE")
    (request,) = server.asked(BenchmarkRequest)
    assert request.inference.max_windows == 5
    assert request.inference.time_to_first_token_objective_seconds == 0.25


def test_bench_draws_a_picture(server, run, tmp_path):
    path = tmp_path / "speed.svg"
    assert run("bench", "--concurrency=1,4,8", f"--output={path}")[0] == 0
    drawing = ElementTree.fromstring(path.read_text())
    svg = "{http://www.w3.org/2000/svg}"
    throughput, first_token, between_tokens = drawing.findall(f"{svg}g")
    tips = [tip.text for tip in throughput.iter(f"{svg}title")]
    assert tips == ["all: 100 tokens/s", "all: 400 tokens/s", "all: 800 tokens/s"]
    for panel in (first_token, between_tokens):
        assert [tip.text for tip in panel.iter(f"{svg}title")][::3] == [
            "p50: 1 ms",
            "p95: 2 ms",
            "p99: 3 ms",
        ]
    assert "a [fast] one" in drawing.find(f"{svg}title").text


def test_bench_refuses_a_picture_it_cannot_draw(server, run, tmp_path):
    for output, reason in (
        ("speed.png", "must end with .svg"),
        (f"{tmp_path}/nowhere/speed.svg", "there is no folder"),
    ):
        code, _, err = run("bench", f"--output={output}")
        assert code == 2 and reason in err
    code, _, err = run("bench", "--mode=training", "--output=speed.svg")
    assert code == 2 and "output is for --mode=inference" in err
    assert not server.asked(BenchmarkRequest)


def test_bench_of_training_takes_the_gems_keys(server, run):
    code, out, _ = run(
        "bench",
        "--mode=training",
        "--n_layer=2",
        "--bias=true",
        "--dataset=plays",
        "--real_data=false",
        "--device=auto",
        "--compile=True",
    )
    assert code == 0
    assert "1.0 / 2.0 / 3.0" in out and "50.0 %" in out
    (request,) = server.asked(BenchmarkRequest)
    assert {field.name: value for field, value in request.training.ListFields()} == {
        "n_layer": 2,
        "bias": True,
        "compile": "on",
    }


def test_a_shared_environment_does_not_disturb_bench(server, run, monkeypatch):
    monkeypatch.setenv("NANOGPT_DEVICE", "cpu")  # the server's own setting
    monkeypatch.setenv("NANOGPT_DATASET", "plays")  # for train
    assert run("bench")[0] == 0


def test_bench_as_json(server, run):
    _, out, _ = run("bench", "--json")
    assert [line["inference"]["concurrency"] for line in objects(out)] == [1, 8]


# Lists and single things


def test_jobs(server, run):
    server.jobs = [job("j2", step=10, remaining_seconds=3700), job("j1", state=Job.STATE_SUCCEEDED)]
    code, out, _ = run("jobs")
    assert code == 0
    header, running, done = [line.split() for line in out.splitlines()]
    assert header[:2] == ["job", "state"]
    assert running[:5] == ["j2", "running", "bard", "plays", "10/30"] and "1:01:40" in running
    assert done[:2] == ["j1", "succeeded"]


def test_a_server_without_jobs_says_how_to_start_one(server, run):
    server.jobs = []
    code, out, _ = run("jobs")
    assert code == 0
    assert out == "There is no job yet; `python -m client train` starts one.\n"
    assert run("jobs", "--json")[1] == ""


def test_jobs_as_json_reads_all_pages(server, run):
    _, out, _ = run("jobs", "--json")
    assert [line["id"] for line in objects(out)] == ["j3", "j2", "j1"]
    assert len(server.asked(ListJobsRequest)) == 2


def test_job_shows_where_settings_come_from(server, run):
    code, out, _ = run("job", "j1")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["job", "j1"] in lines
    assert ["max_iters", "30", "request"] in lines
    assert ["n_layer", "2", "default"] in lines


def test_cancel(server, run):
    assert run("cancel", "j1")[:2] == (0, "job j1: cancelling (requested)\n")


def test_pause_and_resume(server, run):
    assert run("pause", "j1")[:2] == (0, "job j1: pausing\n")
    assert run("resume", "j1")[:2] == (0, "job j1: queued\n")
    assert [request.id for request in server.asked(PauseJobRequest)] == ["j1"]
    assert objects(run("pause", "j1", "--json")[1])[0]["state"] == "STATE_PAUSING"


def test_a_job_is_shown_with_its_history_and_its_starts(server, run):
    lines = [line.split() for line in run("job", "j1")[1].splitlines()]
    assert ["priority", "-5"] in lines
    assert [line[2:] for line in lines if line[2:3] == ["recovering"]] == [
        ["recovering", "(crashed)"]
    ]
    assert [line[3:] for line in lines if line[:1] in (["1"], ["2"])] == [
        ["0", "-9", "crashed"],
        ["10"],
    ]


def test_logs(server, run):
    assert run("logs", "j1", "--follow", "--offset=0")[:2] == (0, "one\ntwo\n")
    asked = server.asked(StreamLogsRequest)[0]
    assert (asked.job_id, asked.follow) == ("j1", True)
    assert [line["text"] for line in objects(run("logs", "j1", "--json")[1])] == ["one\n", "two\n"]


def test_checkpoints_pin_unpin_delete(server, run):
    lines = [line.split() for line in run("checkpoints", "j1")[1].splitlines()]
    assert [lines[1][0], lines[1][-1]] == ["30", "loaded"]
    assert [lines[2][0], lines[2][1], *lines[2][-2:]] == ["20", "1.2500", "best,", "pinned"]
    assert run("pin", "j1", "20")[:2] == (0, "checkpoint 20: kept until it is unpinned\n")
    assert run("unpin", "j1", "20")[:2] == (0, "checkpoint 20: no longer kept\n")
    deleted = "checkpoint 20 of job j1: deleted\n"
    assert run("delete-checkpoint", "j1", "20")[:2] == (0, deleted)
    code, _, err = run("pin", "j1", "newest")
    assert (code, "STEP must be a whole number" in err) == (2, True)


def test_watch_shows_how_models_are_doing(server, run):
    code, out, _ = run("watch", "--serving")
    assert code == 0
    missed, figures, idle = out.splitlines()
    assert missed == "too slow for 1 second: left out"
    assert figures == (
        "bard@2,000  3 running, 1 waiting  123 tokens/s  first token 1.0 / 2.0 / 3.0 ms  "
        "gap 1.0 / 2.0 / 3.0 ms  KV cache 50.0 %  43.1 MB"
    )
    assert idle == "no model is loaded"
    shown = objects(run("watch", "--serving", "--json")[1])
    assert [len(line["serving"]["models"]) for line in shown] == [1, 0]
    code, _, err = run("watch")
    assert (code, "JOB" in err) == (2, True)


def test_watch_says_what_it_was_too_slow_for(server, run):
    assert run("watch", "j1", "--max_behind=5")[0] == 0
    assert server.asked(StreamMetricsRequest)[-1].max_behind == 5
    skipped = StreamMetricsResponse(skipped=Skipped(first_sequence=3, last_sequence=1200))
    assert event_text(skipped, MAX_ITERS) == "too slow for events 3 to 1,200: left out"


def test_train_takes_a_priority(server, run):
    assert run("train", "--dataset=plays", "--priority=-3", "--detach")[0] == 0
    assert run("train", "--dataset=plays", "--detach")[0] == 0
    assert [request.priority for request in server.asked(TrainRequest)] == [-3, 0]


def test_models_load_unload(server, run):
    code, out, _ = run("models")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if "unloaded" in line] == [
        ["bard", "unloaded", "2,000"],
        ["poet", "unloaded", "2,000"],
    ]
    assert run("load", "bard")[:2] == (0, "bard: loaded\n")
    assert run("unload", "bard")[:2] == (0, "bard: unloaded\n")


def test_a_dataset_that_is_being_made_is_shown(server, run):
    server.making = DatasetInProgress(
        name="web", phase=DatasetInProgress.PHASE_READING, bytes_done=5, bytes_total=10_000
    )
    assert "web is being made: reading, 5 B of 10.0 kB\n" in run("datasets")[1]


def test_one_dataset(server, run):
    server.warnings = ["The text is short."]
    code, out, _ = run("dataset", "plays")
    assert code == 0
    for expected in ("plays", "12 documents", "1.5 kB", "25.0 % of val", "The text is short."):
        assert expected in out
    (shown,) = objects(run("dataset", "plays", "--json")[1])
    assert (shown["size_bytes"], shown["report"]["documents"]) == (1500, 12)


def test_datasets(server, run):
    code, out, _ = run("datasets")
    assert code == 0
    assert ["plays", "gpt2"] in [line.split()[:2] for line in out.splitlines()]
    assert "python_reference: A manual." in out
    assert [line["name"] for line in objects(run("datasets", "--json")[1])] == ["plays"]


def test_lines_are_not_cut_when_they_go_to_a_file(server, run):
    server.jobs = [job("j" * 300)]
    assert "j" * 300 in run("jobs")[1]


# Failures


def test_violations_come_one_a_line(server, run):
    wrong = details_pb.BadRequest(
        field_violations=[
            details_pb.BadRequest.FieldViolation(field="config.n_head", description="must divide"),
            details_pb.BadRequest.FieldViolation(field="config.dropout", description="too high"),
        ]
    )
    server.failures["Train"].append(
        rich_status(grpc.StatusCode.INVALID_ARGUMENT, "config.n_head: ...", wrong)
    )
    code, out, err = run("train", "--dataset=plays")
    assert (code, out) == (ExitCode.FAILED, "")
    assert err.splitlines() == [
        "error: the server refuses this request",
        "  config.n_head: must divide",
        "  config.dropout: too high",
    ]


@pytest.mark.parametrize(
    ("code", "detail", "advice"),
    [
        ("NOT_FOUND", details_pb.ResourceInfo(resource_type="nanogpt.v1.model"), "client models"),
        ("RESOURCE_EXHAUSTED", details_pb.RetryInfo(retry_delay=Duration(seconds=2)), "2.0 s"),
        ("DEADLINE_EXCEEDED", details_pb.ErrorInfo(), "too slow"),
        ("UNIMPLEMENTED", details_pb.ErrorInfo(), "older"),
        ("INTERNAL", details_pb.ErrorInfo(metadata={"error_id": "e42"}), "e42"),
        ("ALREADY_EXISTS", details_pb.ErrorInfo(), ""),
    ],
)
def test_failures_say_what_to_do(server, run, code, detail, advice):
    server.failures["LoadModel"].append(rich_status(grpc.StatusCode[code], "because", detail))
    exit_code, out, err = run("load", "bard")
    assert (exit_code, out) == (ExitCode.FAILED, "")
    assert err.startswith("error: because\n") and advice in err


def test_an_unreachable_server_is_told_apart(run):
    with FakeServer() as gone:
        pass
    code, _, err = run("load", "bard", f"--server={gone.address}")
    assert code == ExitCode.UNREACHABLE
    assert gone.address in err and "python -m server" in err and "NANOGPT_SERVER" in err


def test_a_stopping_server_says_when_to_come_back(server, run):
    server.failures["LoadModel"].append(
        rich_status(
            grpc.StatusCode.UNAVAILABLE,
            "the server stops",
            details_pb.ErrorInfo(reason="UNAVAILABLE"),
            details_pb.RetryInfo(retry_delay=Duration(seconds=1)),
        )
    )
    code, _, err = run("load", "bard")
    assert code == ExitCode.UNREACHABLE
    assert err == "error: the server stops\nTry again in 1.0 s.\n"


# Figures


def test_figures():
    assert [figures.duration(s) for s in (0, 59.6, 249, 3849)] == [
        "0:00",
        "1:00",
        "4:09",
        "1:04:09",
    ]
    assert [figures.size(n) for n in (999, 1000, 43_100_000, 2 * 10**12)] == [
        "999 B",
        "1.0 kB",
        "43.1 MB",
        "2.0 TB",
    ]


def test_json_keeps_integers_and_times():
    event = recorded_events()[0]
    event.time.FromMilliseconds(1_700_000_000_500)
    shown = as_json(event)
    assert shown["time"] == "2023-11-14T22:13:20.500Z"
    assert shown["started"]["train_tokens"] == 1000
    assert "model_config" not in shown["started"]  # unset stays unset
