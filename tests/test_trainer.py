"""The training loop against a plain PyTorch loop, and against itself interrupted anywhere."""

import errno
import itertools
import math
import os
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_run import bodies_of, events_of, make_dataset, make_run, record_of

from nanogpt import checkpoint, checkpoint_folder, device
from nanogpt.checkpoint import (
    load_model,
    load_model_state,
    load_train_state,
    publish_model,
    read_meta,
)
from nanogpt.checkpoint_folder import list_checkpoints, newest_valid, step_folder
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.datasets import byte_length
from nanogpt.datasets.byte_length import mean_token_bytes
from nanogpt.datasets.dataset import BadDataset, Dataset
from nanogpt.model import GPT
from nanogpt.option import InvalidConfig
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer
from nanogpt.training import forward as forward_module
from nanogpt.training import limits as limits_module
from nanogpt.training import trainer as trainer_module
from nanogpt.training.batches import Batches, Stream
from nanogpt.training.checkpoint_writer import CheckpointWriter
from nanogpt.training.compile import compiled_forward
from nanogpt.training.evaluate import Evaluator
from nanogpt.training.events import CheckpointWritten, Evaluation, RunStarted, Sample, StepMetrics
from nanogpt.training.execution import Execution
from nanogpt.training.optimizer import make_optimizer
from nanogpt.training.run_directory import ExitCode
from nanogpt.training.schedule import learning_rate
from nanogpt.training.starting_point import num_vocab_rows
from nanogpt.training.step import Diverged, TrainingStep
from nanogpt.training.trainer import train

HARD = {"dropout": 0.1, "gradient_accumulation_steps": 2}
"""Draws random numbers in each step, several times."""


@pytest.fixture(autouse=True, scope="module")
def listed_peak():
    """Spares each of some hundred runs the measurement, which test_device.py tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            device, "measure_peak", lambda *_, bandwidth: device.Peak(1e12, None, "measured")
        )
        yield


def run(directory, should_stop=lambda: False, log=lambda line: None):
    return train(directory, directory.read_spec(), should_stop=should_stop, log=log)


def run_until(directory, step):
    """Asks the run to stop as soon as it has taken that step."""
    lines = []
    return run(
        directory,
        should_stop=lambda: any(line.startswith(f"step {step}/") for line in lines),
        log=lines.append,
    )


def newest(directory):
    return list_checkpoints(directory.checkpoints_path)[-1]


def state_of(directory):
    """Weights, optimizer and random numbers at the end of a run."""
    return {**load_model_state(newest(directory)), **load_train_state(newest(directory))}


def assert_same_state(one, other):
    one, other = state_of(one), state_of(other)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def without_checkpoints(directory):
    return [
        {name: value for name, value in event.items() if name != "sequence"}
        for event in record_of(directory)
        if event["kind"] != "CheckpointWritten"
    ]


def plain_loop(directory):
    """Losses, gradient norms and weights of the same run, in the plainest PyTorch."""
    spec = directory.read_spec()
    config, dataset = spec.config, Dataset.open(directory.path / spec.dataset_dir)
    torch.manual_seed(config.seed)
    model = GPT(config.model_config(dataset.meta.vocab_size))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2]},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=False,
        foreach=False,
    )
    shape = (config.gradient_accumulation_steps, config.batch_size, config.block_size)
    batches = Batches(dataset.tokens("train"), shape=shape, seed=config.seed, stream=Stream.TRAIN)
    losses, norms = [], []
    for step in range(config.max_iters):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        inputs, targets = batches.at(step)
        loss = sum(
            F.cross_entropy(model.lm_head(model.hidden(x)).flatten(0, 1), y.flatten())
            for x, y in zip(inputs, targets, strict=True)
        ) / len(inputs)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        if config.grad_clip:
            for p in model.parameters():
                p.grad *= min(1.0, config.grad_clip / (norm + 1e-6))
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms, model


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 3}, {"grad_clip": 0.0}])
def test_losses_gradients_and_weights_equal_a_plain_loop(tmp_path, more):
    directory = make_run(tmp_path, **more)
    assert run(directory) == ExitCode.DONE
    losses, norms, model = plain_loop(directory)
    steps = bodies_of(directory, StepMetrics)
    assert [s.loss for s in steps] == pytest.approx(losses, abs=1e-5)
    assert [s.grad_norm for s in steps] == pytest.approx(norms, rel=1e-4)
    clip = directory.read_spec().config.grad_clip
    assert [s.clipped for s in steps] == [0 < clip < norm for norm in norms]
    trained = load_model(newest(directory))
    torch.testing.assert_close(
        trained.lm_head.weight.sum(), model.lm_head.weight.sum(), atol=1e-5, rtol=1e-6
    )
    for ours, theirs in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_one_step_within_the_tolerances_of_the_reference():
    config = ModelConfig(block_size=32, vocab_size=65, n_layer=2, n_head=2, n_embd=64, bias=False)
    settings_ = TrainConfig(weight_decay=0.1, learning_rate=1e-3, beta1=0.9, beta2=0.99)

    def make():
        torch.manual_seed(1337)
        return GPT(config)

    torch.manual_seed(42)
    x, y = torch.randint(65, (2, 16)), torch.randint(65, (2, 16))
    ours, plain = make(), make()
    step = TrainingStep(ours, make_optimizer(ours, settings_), dtype=torch.float32, grad_clip=0.0)
    loss = step(x[None], y[None]).loss

    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if p.dim() >= 2]},
            {"params": [p for p in plain.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=1e-3,
        betas=(0.9, 0.99),
        weight_decay=0.1,
    )
    expected = F.cross_entropy(plain.lm_head(plain.hidden(x)).flatten(0, 1), y.flatten())
    expected.backward()
    adamw.step()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    embedding, plain_embedding = ours.transformer.wte.weight, plain.transformer.wte.weight
    assert embedding.grad.sum().item() == pytest.approx(plain_embedding.grad.sum().item(), abs=1e-6)
    assert embedding.sum().item() == pytest.approx(plain_embedding.sum().item(), abs=1e-5)


def test_a_step_event_counts_the_clipped_steps_since_the_last(tmp_path, monkeypatch):
    every, some = (
        make_run(tmp_path, f"{interval}", grad_clip=1.3, log_interval=interval)
        for interval in (1, 5)
    )
    run(every)
    clipped = [s.clipped for s in bodies_of(every, StepMetrics)]
    assert 0 < sum(clipped) < 12
    assert [s.clipped_steps for s in bodies_of(every, StepMetrics)] == clipped
    real, taken = TrainingStep._backward, []

    def backward(self, *batch):
        taken.append(batch)
        return real(self, *batch)

    monkeypatch.setattr(TrainingStep, "_backward", backward)
    assert run(some, should_stop=lambda: len(taken) == 8) == ExitCode.INTERRUPTED
    run(some)
    assert len(taken) == 12
    assert [(s.step, s.clipped_steps) for s in bodies_of(some, StepMetrics)] == [
        (5, sum(clipped[:5])),
        (10, sum(clipped[5:10])),
        (12, sum(clipped[10:])),
    ]


def test_accumulation_equals_a_larger_batch(tmp_path):
    whole = make_run(tmp_path, "whole", batch_size=6)
    cut = make_run(tmp_path, "cut", batch_size=2, gradient_accumulation_steps=3)
    run(whole), run(cut)
    losses = [[s.loss for s in bodies_of(d, StepMetrics)] for d in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_record_of_a_run(tmp_path):
    directory = make_run(tmp_path, max_iters=12, eval_interval=5, log_interval=5)
    assert run(directory) == ExitCode.DONE
    events = events_of(directory)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    started = events[0].body
    assert isinstance(started, RunStarted)
    assert started.model_config.vocab_size == 28
    assert (started.device, started.dtype, started.max_iters) == ("cpu", "float32", 12)
    assert (started.tokenizer, started.tokens_per_step) == ("char", 64)
    assert started.train_tokens + started.val_tokens == 44 * 60
    assert started.peak_source == "measured"
    assert [e.step for e in bodies_of(directory, Evaluation)] == [0, 5, 10, 12]
    assert [e.step for e in bodies_of(directory, Sample)] == [0, 5, 10, 12]
    steps = bodies_of(directory, StepMetrics)
    assert [s.step for s in steps] == [5, 10, 12]
    config = directory.read_spec().config
    for s in steps:
        assert s.learning_rate == learning_rate(config, s.step - 1)
        assert s.tokens == 64 * s.step
        assert s.tokens_per_second == pytest.approx(64 / s.step_seconds)
        assert 0 < s.mfu < 1
        assert s.memory_bytes > 10 << 20
    best = math.inf
    for evaluation in bodies_of(directory, Evaluation):
        assert evaluation.is_best == (evaluation.val_loss < best)
        best = min(best, evaluation.val_loss)
    last = bodies_of(directory, CheckpointWritten)[-1]
    meta = read_meta(newest(directory))
    assert (last.step, last.size_bytes) == (12, meta.size_bytes)
    assert (last.val_loss, last.create_time) == (meta.val_loss, meta.create_time)
    assert (meta.job_id, meta.best_val_loss) == ("run", best)


def test_a_run_does_exactly_max_iters_updates(tmp_path):
    directory = make_run(tmp_path, max_iters=7)
    run(directory)
    steps = {int(t) for n, t in state_of(directory).items() if n.startswith("optimizer.step.")}
    assert steps == {7}


def test_the_loss_falls(tmp_path):
    directory = make_run(
        tmp_path, max_iters=60, lr_decay_iters=60, learning_rate=1e-2, min_lr=1e-3, eval_interval=60
    )
    run(directory)
    first, last = bodies_of(directory, Evaluation)
    assert first.val_loss == pytest.approx(math.log(28), abs=0.15)
    assert last.val_loss < 2.6
    assert last.is_best


def test_evaluating_more_often_changes_nothing_in_training(tmp_path):
    often = make_run(tmp_path, "often", eval_interval=1, **HARD)
    seldom = make_run(tmp_path, "seldom", eval_interval=100, **HARD)
    run(often), run(seldom)
    losses = [[s.loss for s in bodies_of(d, StepMetrics)] for d in (often, seldom)]
    assert losses[0] == losses[1]
    assert torch.equal(
        load_model(newest(often)).lm_head.weight, load_model(newest(seldom)).lm_head.weight
    )


def test_an_evaluation_repeats_itself_and_leaves_the_mode():
    torch.manual_seed(0)
    config = TrainConfig(batch_size=4, block_size=16, eval_iters=3, seed=5)
    shape = ModelConfig(
        block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, dropout=0.5, bias=False
    )
    model = GPT(shape).train()
    tokens = torch.randint(65, (500,)).to(torch.uint16).numpy()
    evaluator = Evaluator(tokens, tokens[:100], config, lambda: False)
    state = torch.get_rng_state()
    first = evaluator(model, model, torch.float32)
    assert evaluator(model, model, torch.float32) == first
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    expected = []
    for step in range(3):
        batches = Batches(tokens, shape=(1, 4, 16), seed=5, stream=Stream.EVALUATE_TRAIN)
        x, y = batches.at(step)
        expected.append(model.eval()(x[0], y[0])[1].item())
    assert first[0] == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_only_steps_are_timed(tmp_path, monkeypatch):
    """Evaluations and checkpoints take a hundred seconds each by this clock, steps one."""
    now = 0.0

    def advance(function, seconds):
        def wrapper(*arguments, **more):
            nonlocal now
            now += seconds
            return function(*arguments, **more)

        return wrapper

    clock = types.SimpleNamespace(perf_counter=lambda: now, time=lambda: 0.0)
    monkeypatch.setattr(trainer_module, "time", clock)
    monkeypatch.setattr(Evaluator, "__call__", advance(Evaluator.__call__, 100))
    monkeypatch.setattr(TrainingStep, "__call__", advance(TrainingStep.__call__, 1))
    monkeypatch.setattr(CheckpointWriter, "save", advance(CheckpointWriter.save, 100))
    directory = make_run(tmp_path, eval_interval=2, log_interval=3)
    run(directory)
    assert {s.step_seconds for s in bodies_of(directory, StepMetrics)} == {1.0}
    assert {e.seconds for e in bodies_of(directory, Evaluation)} == {100.0}


def test_evaluating_only(tmp_path):
    directory = make_run(tmp_path, eval_only=True)
    assert run(directory) == ExitCode.DONE
    kinds = [event["kind"] for event in record_of(directory)]
    assert kinds == ["RunStarted", "Evaluation", "Sample", "CheckpointWritten"]
    assert [folder.name for folder in list_checkpoints(directory.checkpoints_path)] == [
        "step_000000"
    ]


def test_evaluating_only_ends_a_resumed_run_too(tmp_path):
    directory = make_run(tmp_path, max_iters=7)
    run(directory)
    directory = make_run(tmp_path, max_iters=100, eval_only=True)
    assert run(directory) == ExitCode.DONE
    assert newest(directory).name == "step_000007"


def test_patience_ends_a_run(tmp_path, monkeypatch):
    """Only losses below the best by `min_delta` count; also over a restart."""
    losses = iter([(3.0, 3.0), (2.0, 2.5), (1.0, 2.45), (1.0, 2.42), (1.0, 2.1)])
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: next(losses))
    directory = make_run(tmp_path, eval_interval=2, early_stop_patience=2, early_stop_min_delta=0.1)
    assert run_until(directory, step=3) == ExitCode.INTERRUPTED
    assert run(directory) == ExitCode.EARLY_STOPPED
    assert newest(directory).name == "step_000006"
    meta = read_meta(newest(directory))
    assert (meta.best_step, meta.best_val_loss) == (6, 2.42)
    record = record_of(directory)
    assert run(directory) == ExitCode.EARLY_STOPPED  # nothing is left to do
    assert record_of(directory) == record


def test_a_target_ends_a_run(tmp_path, monkeypatch):
    losses = iter([(3.0, 3.0), (2.0, 2.5), (1.0, 2.0)])
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: next(losses))
    directory = make_run(tmp_path, eval_interval=2, target_val_loss=2.5)
    assert run(directory) == ExitCode.EARLY_STOPPED
    assert newest(directory).name == "step_000002"


def test_without_a_target_a_loss_of_nothing_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: (0.0, 0.0))
    assert run(make_run(tmp_path, max_iters=4)) == ExitCode.DONE


@pytest.mark.parametrize(
    ("limit", "last"),
    [
        ({"max_tokens": 64 * 5}, 5),
        ({"max_tokens": 64 * 5 + 1}, 6),
        ({"max_epochs": 0.1}, math.ceil(0.1 * 2376 / 64)),
        ({"max_epochs": 0.1, "max_tokens": 64}, 1),
    ],
)
def test_limits_end_a_run_with_an_evaluation(tmp_path, limit, last):
    directory = make_run(tmp_path, eval_interval=100, **limit)
    assert run(directory) == ExitCode.LIMIT_REACHED
    assert [e.step for e in bodies_of(directory, Evaluation)] == [0, last]
    assert newest(directory).name == f"step_{last:06d}"
    assert bodies_of(directory, RunStarted)[0].max_iters == last
    assert run(directory) == ExitCode.LIMIT_REACHED


def test_the_last_step_is_a_number_that_the_wire_holds():
    most = (1 << 63) - 1
    endless = TrainConfig(max_iters=most, batch_size=4, block_size=16)
    assert limits_module.last_step(endless, 1000) == most
    assert limits_module.last_step(replace(endless, max_tokens=most), 1000) == -(-most // 64)
    assert limits_module.last_step(replace(endless, max_epochs=1e308), 1000) == most


def test_a_limit_beyond_the_last_step_is_none(tmp_path):
    directory = make_run(tmp_path, max_iters=3, max_tokens=64 * 3, max_seconds=1e6)
    assert run(directory) == ExitCode.DONE


def test_time_is_counted_over_attempts(tmp_path, monkeypatch):
    """A step takes a second by this clock, and what is between attempts takes none."""
    now = 0.0
    clock = types.SimpleNamespace(perf_counter=lambda: now, time=lambda: 0.0)
    monkeypatch.setattr(limits_module, "time", clock)
    monkeypatch.setattr(trainer_module, "time", clock)
    real = TrainingStep.__call__

    def step(*arguments, **more):
        nonlocal now
        now += 1.0
        return real(*arguments, **more)

    monkeypatch.setattr(TrainingStep, "__call__", step)
    directory = make_run(tmp_path, eval_interval=100, max_seconds=5)
    assert run_until(directory, step=2) == ExitCode.INTERRUPTED
    now += 1000.0
    assert run(directory) == ExitCode.LIMIT_REACHED
    assert [e.step for e in bodies_of(directory, Evaluation)] == [0, 5]
    assert read_meta(newest(directory)).train["seconds"] == 5.0
    assert run(directory) == ExitCode.LIMIT_REACHED
    assert newest(directory).name == "step_000005"


def test_the_whole_validation_split_is_evaluated():
    """Every window once: the mean is that of one pass over all of them."""
    torch.manual_seed(0)
    shape = ModelConfig(block_size=16, vocab_size=65, n_layer=1, n_head=1, n_embd=16, bias=False)
    model = GPT(shape).eval()
    tokens = torch.randint(65, (16 * 7 + 5,)).to(torch.uint16).numpy()
    config = TrainConfig(batch_size=3, block_size=16, eval_iters=1, eval_whole_split=True)
    evaluator = Evaluator(tokens, tokens, config, lambda: False)
    _, val_loss = evaluator(model, model, torch.float32)
    x = torch.from_numpy(tokens.astype("int64"))
    expected = model(x[: 16 * 7].view(7, 16), x[1 : 16 * 7 + 1].view(7, 16))[1].item()
    assert val_loss == pytest.approx(expected, abs=1e-6)


def test_perplexity_and_bits_of_a_byte(tmp_path):
    """A character of two bytes carries its bits over both."""
    make_dataset(tmp_path / "datasets" / "tiny", "äb" * 600)
    directory = make_run(tmp_path, max_iters=1)
    run(directory)
    evaluation = bodies_of(directory, Evaluation)[-1]
    assert evaluation.val_perplexity == pytest.approx(math.exp(evaluation.val_loss))
    bits = evaluation.val_loss / math.log(2) / 1.5
    assert evaluation.val_bits_per_byte == pytest.approx(bits)


@pytest.mark.parametrize("piece_tokens", [3, 1 << 16])
def test_bytes_of_gpt2_tokens(monkeypatch, piece_tokens):
    monkeypatch.setattr(byte_length, "PIECE_TOKENS", piece_tokens)
    tokenizer = GPT2Tokenizer()
    ids = [*tokenizer.encode("Hello wörld"), tokenizer.end_of_text_id]
    expected = len("Hello wörld".encode()) / len(ids)
    assert mean_token_bytes(tokenizer, np.array(ids, np.uint16)) == pytest.approx(expected)
    padding = np.array([50_300], np.uint16)
    assert mean_token_bytes(tokenizer, padding) is None


def test_prompts_are_continued_at_each_evaluation(tmp_path):
    prompts = ["the quick", "lazy"]
    directory = make_run(tmp_path, max_iters=4, sample_prompts=prompts, sample_tokens=5)
    run(directory)
    samples = bodies_of(directory, Sample)
    assert [(s.step, s.index, s.prompt) for s in samples] == [
        (0, 0, "the quick"),
        (0, 1, "lazy"),
        (4, 0, "the quick"),
        (4, 1, "lazy"),
    ]
    assert {len(s.text) for s in samples} == {5}
    with pytest.raises(
        InvalidConfig, match=r"sample_prompts\[1\]: .*vocabulary does not have: 'Z'"
    ):
        run(make_run(tmp_path, "unknown", sample_prompts=["ok", "Z"]))


@pytest.mark.parametrize(("arch", "n_member"), [("gpt2", 1), ("modern", 1), ("gpt2", 2)])
def test_muon_and_zero_projections_resume_bit_for_bit(tmp_path, arch, n_member):
    more = {**HARD, "optimizer": "muon", "zero_init_projections": True, "lr_schedule": "wsd"}
    more |= {"keep_checkpoints": 9, "sinusoidal_positions": arch == "gpt2", "arch": arch}
    more["n_member"] = n_member
    whole, stopped = make_run(tmp_path, "whole", **more), make_run(tmp_path, "stopped", **more)
    run(whole)
    run_until(stopped, step=3)
    run(stopped)
    assert without_checkpoints(stopped) == without_checkpoints(whole)
    assert_same_state(stopped, whole)
    start = load_model_state(step_folder(whole.checkpoints_path, 0))
    projections = [w for n, w in start.items() if n.endswith("c_proj.weight")]
    assert len(projections) == 4 * n_member
    assert not any(w.any() for w in projections)
    if arch == "modern":
        assert read_meta(step_folder(whole.checkpoints_path, 0)).model_config.arch == "modern"
        return
    positions = [w for n, w in start.items() if n.endswith("wpe.weight")]
    assert len(positions) == n_member
    assert not any(w[0].tensor_split(2)[0].any() for w in positions)  # sines of position 0


def test_a_run_in_pieces_with_a_chunked_loss_resumes_bit_for_bit(tmp_path, monkeypatch):
    """Its losses are those of the plain way; the choice is read back, not made again."""
    plain = make_run(tmp_path, "plain", dropout=0.0)
    run(plain)
    monkeypatch.setattr(forward_module, "LARGE_VOCABULARY", 2)
    monkeypatch.setattr(trainer_module, "choose_execution", lambda *_: Execution(2, "matmul"))
    whole, stopped = make_run(tmp_path, "whole"), make_run(tmp_path, "stopped")
    run(whole)
    run_until(stopped, step=3)
    monkeypatch.setattr(trainer_module, "choose_execution", lambda *_: Execution())
    run(stopped)
    assert without_checkpoints(stopped) == without_checkpoints(whole)
    assert_same_state(stopped, whole)
    losses = [[s.loss for s in bodies_of(d, StepMetrics)] for d in (whole, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = make_run(tmp_path_factory.mktemp("undisturbed"), **HARD)
    run(directory)
    return directory


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(patience=st.lists(st.integers(0, 150), min_size=1, max_size=4))
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(undisturbed, tmp_path_factory, patience):
    """Also in the middle of an evaluation or a sample, which are then made again as a whole."""
    directory = make_run(tmp_path_factory.mktemp("stopped"), **HARD)
    for looks in patience:
        counter = itertools.count()
        code = run(directory, should_stop=lambda c=counter, n=looks: next(c) >= n)
        assert newest_valid(directory.checkpoints_path) is not None
        assert code in (ExitCode.DONE, ExitCode.INTERRUPTED)
    assert run(directory) == ExitCode.DONE
    events = events_of(directory)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert without_checkpoints(directory) == without_checkpoints(undisturbed)
    assert_same_state(directory, undisturbed)


def test_a_finished_run_that_is_started_again_changes_nothing(tmp_path):
    directory = make_run(tmp_path)
    run(directory)
    record, meta = directory.metrics_path.read_bytes(), read_meta(newest(directory))
    assert run(directory) == ExitCode.DONE
    assert directory.metrics_path.read_bytes() == record
    assert read_meta(newest(directory)) == meta


@pytest.mark.parametrize("damaged", [1, 3])
def test_damaged_checkpoints_are_passed_over(undisturbed, tmp_path, damaged):
    """The run goes on from the one before, or from the start if there is none."""
    directory = make_run(tmp_path, keep_checkpoints=1, checkpoint_interval=4, **HARD)
    run_until(directory, step=9)
    folders = list_checkpoints(directory.checkpoints_path)
    assert len(folders) >= 2
    for folder in folders[-damaged:]:
        (folder / "model.safetensors").write_bytes(b"junk")
    lines = []
    assert run(directory, log=lines.append) == ExitCode.DONE
    skipped = [line for line in lines if line.startswith("skipping a checkpoint")]
    assert len(skipped) == min(damaged, len(folders))
    assert without_checkpoints(directory) == without_checkpoints(undisturbed)
    assert_same_state(directory, undisturbed)


@pytest.mark.parametrize(
    "config", [{"checkpoint_interval": 3, "eval_interval": 100}, {"eval_only": True}]
)
def test_a_crash_between_checkpoint_and_event_loses_no_event(tmp_path, config):
    directory = make_run(tmp_path, **config)
    run(directory)
    before = record_of(directory)
    # the record ends before the event of the last checkpoint, whose folder is there
    lines = directory.metrics_path.read_text().splitlines(keepends=True)
    assert '"checkpoint"' in lines[-1]
    directory.metrics_path.write_text("".join(lines[:-1]))
    run(directory)
    assert record_of(directory) == before


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    directory = make_run(
        tmp_path, max_iters=20, eval_interval=4, always_save_checkpoint=True, keep_checkpoints=2
    )
    run(directory)
    folders = {folder.name for folder in list_checkpoints(directory.checkpoints_path)}
    best = read_meta(newest(directory)).best_step
    assert folders == {f"step_{step:06d}" for step in (16, 20, best)}
    written = [c.step for c in bodies_of(directory, CheckpointWritten)]
    assert written == [0, 4, 8, 12, 16, 20]


def test_a_worse_evaluation_writes_no_checkpoint(tmp_path, monkeypatch):
    losses = iter([(3.0, 3.0), (2.0, 2.5), (1.0, 2.7), (1.0, 2.9)])
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: next(losses))
    directory = make_run(tmp_path, max_iters=12, eval_interval=4)
    run(directory)
    checkpoints = bodies_of(directory, CheckpointWritten)
    assert [(c.step, c.val_loss, c.is_best) for c in checkpoints] == [
        (0, 3.0, True),
        (4, 2.5, True),
        (12, 2.9, False),
    ]
    meta = read_meta(newest(directory))
    assert (meta.best_step, meta.best_val_loss, meta.val_loss) == (4, 2.5, 2.9)


def test_a_full_disk_costs_a_checkpoint_not_the_run(tmp_path, monkeypatch):
    real = checkpoint.save_checkpoint

    def full(folder, *arguments):
        if checkpoint_folder.step_of(folder) in (3, 6):
            raise OSError("No space left on device")
        return real(folder, *arguments)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    directory = make_run(tmp_path, checkpoint_interval=3, eval_interval=100)
    lines = []
    assert run(directory, log=lines.append) == ExitCode.DONE
    assert [c.step for c in bodies_of(directory, CheckpointWritten)] == [0, 9, 12]
    assert "step 3: no checkpoint: No space left on device" in lines


def test_a_run_whose_last_checkpoint_fails_is_not_done(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run(make_run(tmp_path))


@pytest.mark.parametrize("step", [3, 6])  # the second in the middle of an evaluation
def test_a_run_that_cannot_save_is_not_interrupted(tmp_path, monkeypatch, step):
    real = checkpoint.save_checkpoint

    def full(folder, *arguments):
        if checkpoint_folder.step_of(folder) > 0:
            raise OSError("No space left on device")
        return real(folder, *arguments)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    directory = make_run(tmp_path, eval_interval=6)
    with pytest.raises(OSError, match="No space left"):
        run_until(directory, step)
    assert newest(directory).name == "step_000000"


def test_a_run_whose_last_event_is_not_on_disk_is_not_done(tmp_path, monkeypatch):
    directory, undisturbed = make_run(tmp_path), make_run(tmp_path, "undisturbed")
    run(undisturbed)
    real_write, full = os.write, False

    def write(file, data):
        nonlocal full
        full = full or b'"kind": "checkpoint", "rollbacks": 0, "step": 12' in data
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left"):
            run(directory)
        with pytest.raises(OSError, match="No space left"):  # still
            run(directory)
    assert run(directory) == ExitCode.DONE
    assert record_of(directory) == record_of(undisturbed)


@pytest.fixture
def model_folder(tmp_path):
    """A trained model, published, of the tiny dataset's vocabulary."""
    directory = make_run(tmp_path, "first", max_iters=10)
    run(directory)
    publish_model(newest(directory), tmp_path / "models" / "first")
    return tmp_path / "models" / "first"


def test_fine_tuning_starts_with_the_weights_of_the_model(tmp_path, model_folder):
    directory = make_run(
        tmp_path, init="../../models/first", init_from="first", n_layer=1, bias=True, dropout=0.2
    )
    run(directory)
    shape = bodies_of(directory, RunStarted)[0].model_config
    assert (shape.n_layer, shape.bias, shape.dropout) == (2, False, 0.2)  # shape of the model
    before = read_meta(model_folder).val_loss
    assert bodies_of(directory, Evaluation)[0].val_loss == pytest.approx(before, abs=1e-6)
    for path in model_folder.iterdir():
        path.unlink()  # a run that has begun needs it no more
    assert run(directory) == ExitCode.DONE


def test_a_smaller_block_crops_and_a_larger_one_is_refused(tmp_path, model_folder):
    smaller = make_run(tmp_path, "smaller", init="../../models/first", block_size=8, max_iters=1)
    run(smaller)
    state = load_model_state(step_folder(smaller.checkpoints_path, 0))
    positions = load_model_state(model_folder)["transformer.wpe.weight"]
    assert torch.equal(state["transformer.wpe.weight"], positions[:8])
    larger = make_run(tmp_path, "larger", init="../../models/first", block_size=32)
    with pytest.raises(InvalidConfig, match="block_size: must be at most 16"):
        run(larger)


def test_fine_tuning_needs_the_same_vocabulary(tmp_path, model_folder):
    other = tmp_path / "other"
    make_dataset(other / "datasets" / "tiny", "an entirely different text, with commas!\n" * 60)
    directory = make_run(other, init=str(model_folder))
    with pytest.raises(BadDataset, match="fine-tuning needs the same"):
        run(directory)


def test_a_model_that_is_damaged_or_gone_is_a_bad_config(tmp_path, model_folder):
    directory = make_run(tmp_path, init="../../models/first")
    (model_folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InvalidConfig, match="init_from: first/model"):
        run(directory)
    with pytest.raises(InvalidConfig, match="init_from: there is no checkpoint second"):
        run(make_run(tmp_path, init="../../models/second"))


def test_vocabulary_of_a_new_model():
    assert num_vocab_rows(CharTokenizer("abc")) == 3
    assert num_vocab_rows(GPT2Tokenizer()) == 50304


def test_a_split_that_is_too_short_is_refused_with_the_numbers(tmp_path):
    make_dataset(tmp_path / "datasets" / "tiny", "abcdefghij" * 10)
    with pytest.raises(BadDataset, match="validation split has 10 tokens, but block_size 16 needs"):
        run(make_run(tmp_path))


def test_a_run_refuses_to_go_on_with_another_dataset(tmp_path):
    directory = make_run(tmp_path)
    run(directory)
    other = tmp_path / "other"
    make_dataset(other, "the lazy dog jumps over the quick brown fox\n" * 60)
    for path in other.iterdir():
        path.replace(tmp_path / "datasets" / "tiny" / path.name)
    with pytest.raises(BadDataset, match="not the one that this run began with"):
        run(directory)


def test_what_changed_since_the_checkpoint_is_logged(tmp_path):
    run(make_run(tmp_path, max_iters=4))
    directory = make_run(tmp_path, max_iters=6)
    lines = []
    assert run(directory, log=lines.append) == ExitCode.DONE
    assert "changed since the checkpoint: max_iters was 4, is 6" in lines
    assert newest(directory).name == "step_000006"
    with pytest.raises(InvalidConfig, match="block_size: must be 16"):
        run(make_run(tmp_path, max_iters=6, block_size=8))


def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    directory = make_run(
        tmp_path,
        learning_rate=1e3,
        weight_decay=1e3,
        decay_lr=False,
        max_iters=100,
        checkpoint_interval=2,
        max_skips=2,
        max_rollbacks=0,
    )
    with pytest.raises(Diverged, match=r"after step \d+; .* last good checkpoint is step \d+"):
        run(directory)
    steps = bodies_of(directory, StepMetrics)
    assert all(math.isfinite(s.loss) and math.isfinite(s.grad_norm) for s in steps)
    kept = newest_valid(directory.checkpoints_path)
    assert kept is not None
    assert all(w.isfinite().all() for w in load_model(kept).parameters())


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_optimizer(poison):
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32))
    before = {name: w.clone() for name, w in model.state_dict().items()}
    optimizer = make_optimizer(model, TrainConfig())

    def forward(x, y):
        logits, loss = model(x, y)
        # the square root has an infinite slope at 0, where its value is 0
        extra = loss * math.inf if poison == "loss" else (loss - loss.detach()).sqrt()
        return logits, loss + extra

    step = TrainingStep(model, optimizer, dtype=torch.float32, grad_clip=1.0, forward=forward)
    tokens = torch.randint(65, (1, 4, 16))
    result = step(tokens, tokens)
    assert not result.applied
    assert not math.isfinite(result.loss if poison == "loss" else result.grad_norm)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert not optimizer.state


def test_a_float16_step_that_overflows_is_repeated_with_a_smaller_scale():
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32))
    optimizer = make_optimizer(model, TrainConfig())
    step = TrainingStep(model, optimizer, dtype=torch.float16, grad_clip=1.0)
    step.load_scaler_state({**step.scaler_state(), "scale": 2.0**40})
    tokens = torch.randint(65, (2, 4, 16))
    result = step(tokens, tokens)
    assert math.isfinite(result.grad_norm)
    assert step.scaler_state()["scale"] < 2.0**40
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}
    reference = TrainingStep(
        model, make_optimizer(model, TrainConfig()), dtype=torch.float32, grad_clip=1.0
    )
    torch.manual_seed(0)
    model.load_state_dict(GPT(model.config).state_dict())
    assert result.loss == pytest.approx(reference(tokens, tokens).loss, abs=0.02)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_in_half_precision_resumes_bit_for_bit(tmp_path, dtype):
    """Its losses stay close to those in full precision."""
    whole = make_run(tmp_path, "whole", dtype=dtype, max_iters=6, **HARD)
    run(whole)
    stopped = make_run(tmp_path, "stopped", dtype=dtype, max_iters=6, **HARD)
    run_until(stopped, step=3)
    assert newest(stopped).name == "step_000003"
    run(stopped)
    assert without_checkpoints(stopped) == without_checkpoints(whole)
    assert_same_state(stopped, whole)
    full = make_run(tmp_path, "full", max_iters=6, **HARD)
    run(full)
    losses = [[s.loss for s in bodies_of(d, StepMetrics)] for d in (whole, full)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_a_measured_type_stays_for_the_whole_run(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_bfloat16_is_faster", lambda where: True)
    directory = make_run(tmp_path, dtype="auto")
    run_until(directory, step=3)
    monkeypatch.setattr(device, "_bfloat16_is_faster", lambda where: False)
    run(directory)
    assert read_meta(newest(directory)).train["dtype"] == "bfloat16"


def test_a_failing_compiler_does_not_stop_the_run(tmp_path, monkeypatch):
    def broken_compile(model):
        def forward(x, y):
            raise RuntimeError("no C++ compiler\nand a long explanation")

        return forward

    eager, compiled = (
        make_run(tmp_path, "eager", **HARD),
        make_run(tmp_path, "compiled", compile="on", **HARD),
    )
    run(eager)
    monkeypatch.setattr(torch, "compile", broken_compile)
    lines = []
    assert run(compiled, log=lines.append) == ExitCode.DONE
    assert "compiling failed, going on without: RuntimeError: no C++ compiler" in lines
    assert len([line for line in lines if "compiling" in line]) == 1
    assert without_checkpoints(compiled) == without_checkpoints(eager)


@pytest.mark.parametrize(("mode", "compiles"), [("on", True), ("auto", False), ("off", False)])
def test_what_is_compiled_on_a_cpu(monkeypatch, mode, compiles):
    model = GPT(ModelConfig(block_size=16, vocab_size=65, n_layer=1, n_head=1, n_embd=8))
    monkeypatch.setattr(torch, "compile", lambda m: lambda x, y: m(x, y))
    state, tokens = torch.get_rng_state(), torch.zeros(1, 4, dtype=torch.int64)
    forward = compiled_forward(
        model, mode, dtype=torch.float32, example=(tokens, tokens), log=print
    )
    assert (forward is not model) == compiles
    assert torch.equal(torch.get_rng_state(), state)
    assert all(w.grad is None for w in model.parameters())
    assert model.training


def test_metrics_are_copied_to_weights_and_biases(tmp_path, monkeypatch):
    logged, options = [], {}

    class Run:
        def log(self, metrics, step):
            logged.append((step, metrics))

        def finish(self):
            logged.append("finished")

    def init(**more):
        options.update(more)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    directory = make_run(tmp_path, max_iters=2, wandb_log=True, wandb_project="p")
    run(directory)
    assert (options["project"], options["id"]) == ("p", "run")
    assert logged[-1] == "finished"
    assert [step for step, _ in logged[:-1]] == [0, 1, 2, 2]
    evaluation = bodies_of(directory, Evaluation)[0]
    assert logged[0][1] == {
        "iter": 0,
        "train/loss": evaluation.train_loss,
        "val/loss": evaluation.val_loss,
    }
    assert logged[1][1]["loss"] == bodies_of(directory, StepMetrics)[0].loss


def test_metrics_are_copied_to_tensorboard(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def close(self):
            written.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    directory = make_run(tmp_path, max_iters=1, tensorboard_log=True)
    run(directory)
    assert written[0] == str(directory.path / "tensorboard")
    assert written[-1] == "closed"
    assert {("val/loss", 0), ("loss", 1), ("lr", 1), ("grad_norm", 1)} < set(written[1:-1])


def test_without_tensorboard_a_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    lines = []
    directory = make_run(tmp_path, max_iters=1, tensorboard_log=True)
    assert run(directory, log=lines.append) == ExitCode.DONE
    assert len([line for line in lines if line.startswith("no metrics for TensorBoard")]) == 1


@pytest.mark.parametrize("failure", ["missing", "offline"])
def test_weights_and_biases_can_never_stop_a_run(tmp_path, monkeypatch, failure):
    def init(**more):
        raise ConnectionError("no network")

    broken = None if failure == "missing" else types.SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "wandb", broken)
    lines = []
    directory = make_run(tmp_path, max_iters=2, wandb_log=True)
    assert run(directory, log=lines.append) == ExitCode.DONE
    assert len([line for line in lines if "Weights & Biases" in line]) == 1
