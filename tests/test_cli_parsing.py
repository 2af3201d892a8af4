"""Reading command lines: precedence, types, and errors that say what was meant. No server."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.arguments import UsageError, read_command_line
from client.cli import main
from client.commands.prepare import SHIPPED
from client.commands.table import COMMANDS, TRAINING_BENCH_KEYS
from client.commands.train_keys import TRAIN_KEYS
from client.exit_code import ExitCode
from client.keys import BOOL, FLOAT, INT32, INT64, SWITCH, TEXT, TEXTS, UINT64
from nanogpt.config import TrainConfig as LibraryConfig
from nanogpt.datasets.shipped import SHIPPED as SHIPPED_BY_THE_LIBRARY
from protos.nanogpt.v1.inference_pb2 import TrainingBenchmark
from protos.nanogpt.v1.training_pb2 import TrainConfig


def read(*words: str, env: dict[str, str] | None = None):
    return read_command_line(words, env or {})


# The table of hyperparameters


def test_train_keys_are_the_fields_of_the_proto():
    field = TrainConfig.DESCRIPTOR.fields_by_name
    kinds = {
        INT32: field["n_layer"].CPPTYPE_INT32,
        INT64: field["n_layer"].CPPTYPE_INT64,
        UINT64: field["n_layer"].CPPTYPE_UINT64,
        FLOAT: field["n_layer"].CPPTYPE_DOUBLE,
        BOOL: field["n_layer"].CPPTYPE_BOOL,
        TEXT: field["n_layer"].CPPTYPE_STRING,
        TEXTS: field["n_layer"].CPPTYPE_STRING,
        SWITCH: field["n_layer"].CPPTYPE_STRING,
    }
    assert {key.name: kinds[key.kind] for key in TRAIN_KEYS} == {
        name: descriptor.cpp_type for name, descriptor in field.items()
    }


def test_defaults_in_the_help_are_those_of_the_server():
    assert {key.name: key.default for key in TRAIN_KEYS} == LibraryConfig().to_mapping()


def test_bench_keys_are_fields_of_the_proto():
    names = {key.name for key in TRAINING_BENCH_KEYS} - {"device", "real_data"}
    assert names == set(TrainingBenchmark.DESCRIPTOR.fields_by_name) - {"seed"}


def test_prepare_knows_what_ships():
    assert SHIPPED.keys() == SHIPPED_BY_THE_LIBRARY.keys()


# Where values come from


def test_flags_beat_the_environment_which_beats_the_file_which_beats_defaults(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"n_layer": 1, "n_head": 1, "n_embd": 1}))
    options = read(
        "train",
        "--n_layer=3",
        f"--config={file}",
        env={"NANOGPT_N_LAYER": "2", "NANOGPT_N_HEAD": "2", "NANOGPT_DATA_DIR": "/srv"},
    )
    assert [options[key] for key in ("n_layer", "n_head", "n_embd", "batch_size")] == [3, 2, 1, 64]
    assert options.some(TRAIN_KEYS) == {"n_layer": 3, "n_head": 2, "n_embd": 1}
    assert options.explicit == {"n_layer", "n_head", "n_embd", "config"}


def test_the_server_comes_from_the_environment():
    assert read("jobs").text("server") == "127.0.0.1:50051"
    assert read("jobs", env={"NANOGPT_SERVER": "gpu:1"}).text("server") == "gpu:1"
    assert read("jobs", "--server=me:2", env={"NANOGPT_SERVER": "gpu:1"}).text("server") == "me:2"


def test_an_empty_variable_is_as_good_as_none():
    options = read("train", env={"NANOGPT_SERVER": "", "NANOGPT_SEED": ""})
    assert options.text("server") == "127.0.0.1:50051"
    assert options.given == {}


def test_the_last_flag_wins_wherever_it_stands():
    options = read("watch", "--start_sequence=2", "j1", "--start_sequence=3")
    assert (options["start_sequence"], options.arguments) == (3, ("j1",))


def test_out_dir_is_another_name_of_model(tmp_path):
    file = tmp_path / "run.json"
    file.write_text('{"out_dir": "filed"}')
    assert read("train", "--out_dir=bard").text("model") == "bard"
    assert read("sample", f"--config={file}").text("model") == "filed"
    assert read("sample", env={"NANOGPT_OUT_DIR": "bard"}).text("model") == "bard"


# Values


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max_iters=2000", 2000),
        ("--seed=18446744073709551615", 2**64 - 1),
        ("--learning_rate=6e-4", 6e-4),
        ("--dropout=0", 0.0),
        ("--bias=True", True),
        ("--bias=fAlSe", False),
        ("--wandb_log", True),
        ("--compile=True", "on"),
        ("--compile=False", "off"),
        ("--compile=auto", "auto"),
        ("--wandb_run_name=a=b=c", "a=b=c"),
        ("--dataset=", ""),
    ],
)
def test_values_have_the_type_of_their_key(flag, value):
    found = read("train", flag)[flag[2:].partition("=")[0]]
    assert found == value and type(found) is type(value)


def test_concurrency_is_a_list():
    assert read("bench", "--concurrency=1,8,32")["concurrency"] == (1, 8, 32)


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_64_bit_integer_is_read(number):
    assert read("train", f"--max_iters={number}")["max_iters"] == number


@given(st.floats(allow_nan=False))
def test_every_float_is_read(number):
    assert read("train", f"--learning_rate={number!r}")["learning_rate"] == number


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_every_text_is_read_as_it_is(text):
    assert read("sample", f"--start={text}")["start"] == text


def test_json_values_have_json_types(tmp_path):
    file = tmp_path / "run.json"
    values = {
        "max_iters": 9,
        "dropout": 0,
        "learning_rate": 0.001,
        "bias": True,
        "compile": False,
        "dataset": "plays",
    }
    file.write_text(json.dumps(values))
    options = read("train", f"--config={file}")
    assert {name: options[name] for name in values} == {**values, "compile": "off"}
    file.write_text('{"concurrency": [1, 8]}')
    assert read("bench", f"--config={file}")["concurrency"] == (1, 8)


# Errors


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["train", "--max_iter=5"], ["--max_iter", "max_iters"]),
        (["train", "--max_iters=abc"], ["--max_iters", "whole number", "'abc'"]),
        (["train", "--max_iters=5.5"], ["--max_iters", "whole number"]),
        (["train", "--n_layer=99999999999"], ["--n_layer", "2147483647"]),
        (["train", "--seed=-1"], ["--seed", "[0, "]),
        (["train", "--dropout=high"], ["--dropout", "number", "'high'"]),
        (["train", "--bias=yes"], ["--bias", "true or false"]),
        (["train", "--compile=maybe"], ["--compile", "on, off or auto"]),
        (["train", "--max_iters"], ["--max_iters needs a value"]),
        (["train", "max_iters=5"], ["'max_iters=5'", "--key=value"]),
        (["sample", "--start=\udcff"], ["--start", "UTF-8"]),
        (["bench", "--mode=both"], ["--mode", "inference or training"]),
        (["bench", "--concurrency=1;8"], ["--concurrency", "commas"]),
        (["bench", "--concurrency=99999999999"], ["--concurrency", "32 bits"]),
        (["pin", "j1", "9" * 19], ["STEP", "18 digits"]),
        (["score", "\udcff"], ["udcff", "UTF-8"]),
        (["watch"], ["watch needs JOB"]),
        (["cancel", "j1", "j2"], ["'j2'"]),
        (["trian"], ["'trian'", "'train'"]),
        (["help", "trian"], ["'train'"]),
        (["prepare", "textfile"], ["PATH"]),
        (["prepare", "wikipedia"], ["wikipedia", "openwebtext", "python_reference"]),
        (["prepare", "openwebtext"], ["PATH", "folder"]),
        (["prepare", "folder", "/nowhere"], ["/nowhere", "not a folder"]),
        (["prepare", "folder", "protos"], [".txt", "protos"]),
        (["prepare", "textfile", "README.md", "--text_field=x"], ["text_field", "textfile"]),
        (["prepare", "jsonl", "README.md", "--max_docs=x"], ["max_docs", "whole number"]),
        (["prepare", "shakespeare", "x.txt"], ["--file"]),
        (["prepare", "shakespeare", "--tokenizer=char"], ["tokenizer", "fixed"]),
        (["prepare", "textfile", "/nowhere/x.txt"], ["/nowhere/x.txt"]),
        (["prepare", "textfile", "..."], ["--output=NAME"]),
        (["sample", "--start=FILE:/nowhere/x.txt"], ["/nowhere/x.txt"]),
        (["bench", "--n_layer=2"], ["n_layer", "--mode=training"]),
        (["bench", "--mode=training", "--concurrency=2"], ["concurrency", "--mode=inference"]),
        (["bench", "--mode=training", "--device=cuda"], ["device", "auto"]),
        (["jobs", "--config=/nowhere/x.json"], ["/nowhere/x.json"]),
        (["jobs", "--server="], ["--server", "host:port"]),
    ],
)
def test_usage_errors_name_what_is_wrong_and_what_is_right(capsys, words, names):
    assert main(words) == ExitCode.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    for name in names:
        assert name in shown.err


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('{"max_iter": 5}', ["max_iter ", "'max_iters'", "run.json"]),
        ('{"max_iters": "5"}', ["max_iters", '"5"', "int", "run.json"]),
        ('{"max_iters": true}', ["max_iters", "int"]),
        ('{"max_iters": 5.0}', ["max_iters", "int"]),
        ('{"dataset": null}', ["dataset", "null"]),
        ('{"config": "other.json"}', ["config"]),
        ("[1]", ["one JSON object"]),
        ("{max_iters: 5}", ["run.json", "not JSON"]),
        ("\xff", ["run.json", "not JSON"]),
    ],
)
def test_errors_in_a_file_name_it(tmp_path, content, names):
    file = tmp_path / "run.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        read("train", f"--config={file}")
    for name in names:
        assert name in str(caught.value)


def test_errors_in_the_environment_name_the_variable():
    with pytest.raises(UsageError, match="NANOGPT_MAX_ITERS must be a whole number, got 'abc'"):
        read("train", env={"NANOGPT_MAX_ITERS": "abc"})


# Help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(capsys, words):
    assert main(words) == ExitCode.DONE
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command.name} " in shown and command.summary in shown


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_of_a_command_has_every_key(capsys, command):
    for words in (["help", command.name], [command.name, "--help"], [command.name, "-h"]):
        assert main(words) == ExitCode.DONE
        shown = capsys.readouterr().out
        for key in command.keys:
            assert f"--{key.name}={key.kind.name}" in shown and key.meaning in shown


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_are_read_and_commands_load(command):
    assert callable(command.load())
    for example in command.examples:
        name, *words = shlex.split(example)
        read(name, *words)


def test_prepare_alone_lists_what_can_be_made(capsys):
    assert main(["prepare"]) == ExitCode.USAGE
    shown = capsys.readouterr().err
    for name in ("textfile PATH", "python_reference", "shakespeare_char", "shakespeare "):
        assert name in shown


@pytest.mark.parametrize("words", [["version"], ["--version"], ["-v"]])
def test_version(capsys, words):
    assert main(words) == ExitCode.DONE
    assert capsys.readouterr().out.startswith("nanogpt-service ")
