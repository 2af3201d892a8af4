"""Settings: one place, defaults, ranges, and errors that say which variable to change."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import BadSettings, Settings, help_text, load_settings, split_address


def test_defaults_serve_on_loopback_only():
    settings = load_settings()
    assert settings.data_dir == Path("data")
    assert split_address(settings.grpc_address) == ("127.0.0.1", 50051)
    assert split_address(settings.http_address) == ("127.0.0.1", 9464)


def test_arguments_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("NANOGPT_NUM_SLOTS", "4")
    monkeypatch.setenv("NANOGPT_DRAIN_SECONDS", "5")
    settings = load_settings(["--num_slots=8"])
    assert (settings.num_slots, settings.drain_seconds) == (8, 5.0)


def test_keys_may_be_written_with_dashes():
    assert load_settings(["--data-dir=/x"]).data_dir == Path("/x")


def test_an_empty_value_is_the_default(monkeypatch):
    monkeypatch.setenv("NANOGPT_THREADS", "")
    monkeypatch.setenv("NANOGPT_LOAD_MODELS", "a")
    settings = load_settings(["--load_models="])
    assert (settings.threads, settings.load_models) == (None, ())


def test_names_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("NANOGPT_LOAD_MODELS", "gpt2, tiny,")
    assert load_settings().load_models == ("gpt2", "tiny")


def test_every_bad_value_is_named_with_its_source(monkeypatch):
    monkeypatch.setenv("NANOGPT_DEVICE", "tpu")
    with pytest.raises(BadSettings) as caught:
        load_settings(["--num_slots=0", "--grpc_address=here"])
    lines = sorted(str(caught.value).splitlines())
    assert [line.partition(":")[0] for line in lines] == [
        "--grpc_address",
        "--num_slots",
        "NANOGPT_DEVICE",
    ]
    assert "'here'" in lines[0] and "host:port" in lines[0]
    assert "greater than or equal to 1" in lines[1]
    assert "'cpu'" in lines[2] and "'tpu'" in lines[2]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "3601"])
def test_seconds_are_finite_and_in_range(value):
    with pytest.raises(BadSettings, match="--drain_seconds"):
        load_settings([f"--drain_seconds={value}"])


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(BadSettings, match=r"--num_slot: no such setting; did you mean --num_slots"):
        load_settings(["--num_slot=3"])


@pytest.mark.parametrize("argument", ["serve", "--num_slots", "-x=3"])
def test_arguments_are_key_value_pairs(argument):
    with pytest.raises(BadSettings, match="--key=value"):
        load_settings([argument])


def test_settings_cannot_change():
    with pytest.raises(ValidationError):
        load_settings().num_slots = 3


def test_help_lists_every_setting_with_its_default():
    text = help_text()
    for name, field in Settings.model_fields.items():
        assert f"--{name}=" in text
        assert field.description in text
    assert "--num_slots=32" in text


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:50051", ("::1", 50051)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_addresses_split(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["localhost", ":80", "a:65536", "a:-1", "a:b", ""])
def test_bad_addresses_are_refused(address):
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_settings_need_no_torch():
    code = "import server.settings, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
