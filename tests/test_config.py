"""Configurations say which field is wrong, with what is allowed, all at once."""

import math

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.option import InvalidConfig
from nanogpt.preset import load_preset, preset_names
from protos.nanogpt.v1 import training_pb2 as pb


def wrong_fields(make, **values):
    with pytest.raises(InvalidConfig) as raised:
        make(**values)
    return [violation.field for violation in raised.value.violations]


def test_head_size_divides_the_width():
    assert ModelConfig(n_embd=384, n_head=6).head_size == 64
    assert wrong_fields(ModelConfig, n_embd=63, n_head=4) == ["n_head"]
    assert wrong_fields(TrainConfig, n_embd=63, n_head=4) == ["n_head"]


def test_defaults_are_those_of_the_tables():
    model = ModelConfig()
    assert (model.block_size, model.vocab_size, model.n_layer) == (1024, 50304, 12)
    assert (model.n_head, model.n_embd, model.dropout, model.bias) == (12, 768, 0.0, True)
    config = TrainConfig()
    assert (config.batch_size, config.block_size, config.max_iters) == (64, 256, 5000)
    assert config.tokens_per_step == 16384


def test_every_wrong_field_is_named_at_once():
    fields = wrong_fields(TrainConfig, batch_size=0, dropout=1.0, device="tpu", learning_rate=0.0)
    assert set(fields) == {"batch_size", "dropout", "device", "learning_rate"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(value):
    assert wrong_fields(TrainConfig, learning_rate=value) == ["learning_rate"]
    assert wrong_fields(SamplingParams, temperature=value) == ["temperature"]


@pytest.mark.parametrize("value", ["12", 12.5, True, None])
def test_a_count_must_be_an_integer(value):
    assert wrong_fields(TrainConfig, batch_size=value) == ["batch_size"]


@pytest.mark.parametrize("name", ["max_iters", "n_layer", "learning_rate", "max_seconds", "seed"])
def test_a_number_that_no_field_holds_is_out_of_range(name):
    assert wrong_fields(TrainConfig, **{name: 10**400}) == [name]
    assert wrong_fields(SamplingParams, temperature=10**400) == ["temperature"]


def test_texts_are_short_and_lists_are_lists():
    assert wrong_fields(TrainConfig, wandb_run_name="x" * 257) == ["wandb_run_name"]
    assert wrong_fields(TrainConfig, sample_prompts={}) == ["sample_prompts"]


def test_what_a_config_allows_the_wire_can_hold():
    """Else a job that came in by the dashboard could not be told of by gRPC."""
    largest = {"TYPE_INT32": 2**31 - 1, "TYPE_INT64": 2**63 - 1, "TYPE_UINT64": 2**64 - 1}
    kinds = {
        number: name for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")
    }
    checked = 0
    for spec in pb.TrainConfig.DESCRIPTOR.fields:
        most = largest.get(kinds[spec.type])
        if most is None:
            continue
        allowed = TrainConfig.__dataclass_fields__[spec.name].metadata["range"]
        assert allowed.le is not None or allowed.lt is not None, spec.name
        assert not allowed.allows(most + 1), spec.name
        checked += 1
    assert checked > 20


def test_an_integer_is_a_fine_float():
    assert TrainConfig(dropout=0).dropout == 0


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(InvalidConfig, match="did you mean 'max_iters'"):
        TrainConfig.from_mapping({"max_iter": 5})


def test_fields_that_do_not_fit_together_are_named_beside_those_out_of_range():
    wrong = wrong_fields(TrainConfig, eval_iters=0, n_embd=63, n_head=4, learning_rate=1e-5)
    assert wrong == ["eval_iters", "n_head", "min_lr"]
    assert wrong_fields(TrainConfig, n_embd=63, n_head=0) == ["n_head"]  # known wrong already


def test_a_modern_network_has_no_biases_and_pairs_to_rotate():
    modern = {"arch": "modern"}
    for key in ("bias", "sinusoidal_positions"):
        assert wrong_fields(TrainConfig, **modern, **{key: True}) == [key]
    assert wrong_fields(TrainConfig, **modern, n_embd=66, n_head=6) == ["n_head"]
    assert wrong_fields(ModelConfig, **modern) == ["bias"]  # nanoGPT's default is true
    assert wrong_fields(TrainConfig, arch="llama") == ["arch"]
    assert TrainConfig(**modern).model_config(65) == ModelConfig(
        256, 65, 6, 6, 384, dropout=0.2, bias=False, arch="modern"
    )


def test_rates_and_schedule_must_fit_together():
    assert wrong_fields(TrainConfig, warmup_iters=10, lr_decay_iters=10) == ["lr_decay_iters"]
    assert wrong_fields(TrainConfig, learning_rate=1e-5, min_lr=1e-4) == ["min_lr"]
    TrainConfig(warmup_iters=10, lr_decay_iters=10, decay_lr=False)


def test_sampling_and_stopping_limits():
    assert wrong_fields(SamplingParams, temperature=2.5, top_k=0, top_p=0.0) == [
        "temperature",
        "top_k",
        "top_p",
    ]
    assert wrong_fields(SamplingParams, logit_bias={7: 101.0}) == ["logit_bias[7]"]
    assert wrong_fields(StoppingParams, min_new_tokens=9, max_new_tokens=8) == ["min_new_tokens"]
    assert wrong_fields(StoppingParams, stop_strings=("",)) == ["stop_strings[0]"]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "batch_size": st.integers(1, 512),
            "dropout": st.floats(0, 0.99),
            "seed": st.integers(0, 2**64 - 1),
            "decay_lr": st.booleans(),
            "grad_clip": st.floats(0, 10),
            "init_from": st.sampled_from(["scratch", "gpt2", "job:1"]),
        },
    )
)
def test_a_config_survives_its_mapping(values):
    config = TrainConfig.from_mapping(values)
    assert TrainConfig.from_mapping(config.to_mapping()) == config
    for name, value in values.items():
        assert getattr(config, name) == value


def test_an_unknown_preset_names_the_nearest():
    assert "train_gpt2" in preset_names()
    with pytest.raises(InvalidConfig, match="did you mean 'train_gpt2'"):
        load_preset("train_gpt3")
