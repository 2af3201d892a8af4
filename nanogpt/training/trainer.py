"""One training run: nanoGPT's loop, with checkpoints to go on from and a record of what happened.

It reads and writes the run directory and reads the dataset. Who started it, and why it is asked to
stop, it does not know.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nanogpt import checkpoint, checkpoint_folder, device
from nanogpt.checkpoint import CheckpointDamaged, CheckpointMeta
from nanogpt.config import TrainConfig
from nanogpt.datasets.byte_length import mean_token_bytes
from nanogpt.datasets.dataset import Dataset
from nanogpt.option import InvalidConfig, Violation
from nanogpt.training.batches import Batches, Prefetcher, Stream
from nanogpt.training.checkpoint_writer import CheckpointWriter, written
from nanogpt.training.divergence import Window
from nanogpt.training.evaluate import Evaluator, Interrupted
from nanogpt.training.events import (
    Action,
    Divergence,
    Evaluation,
    EventWriter,
    NoEvents,
    RunStarted,
    Sample,
)
from nanogpt.training.execution import Execution, choose_execution, recorded_execution
from nanogpt.training.forward import make_forward
from nanogpt.training.limits import Limits
from nanogpt.training.memory import estimate_memory
from nanogpt.training.optimizer import make_optimizer, set_learning_rate
from nanogpt.training.report import Report
from nanogpt.training.run_directory import STARTED_PREFIX, ExitCode, RunDirectory, RunSpec
from nanogpt.training.sample import prompts_of, write_sample
from nanogpt.training.schedule import learning_rate
from nanogpt.training.snapshot import (
    Progress,
    Snapshot,
    dataset_identity,
    restore_tensors,
    take_tensors,
)
from nanogpt.training.starting_point import Resumed, find_starting_point, read_checkpoint
from nanogpt.training.step import Diverged, StepResult, TrainingStep
from nanogpt.training.tracking import Tracking
from nanogpt.training.world import World


def train(
    directory: RunDirectory,
    spec: RunSpec,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = print,
    world: World | None = None,
) -> ExitCode:
    """Trains until a stop is asked for (INTERRUPTED) or the end: DONE, or one of the early ones.

    Goes on from the newest valid checkpoint if there is one, and writes one either way. Raises
    InvalidConfig, BadDataset, Diverged, OSError if that last checkpoint cannot be written, and
    whatever torch raises when memory runs out.

    All processes of a world call it; they stop as soon as one of them should. The first one
    writes and reports, the others are silent.
    """
    world = world or World()
    config = spec.config
    if not world.is_first:
        log, config = _say_nothing, replace(config, wandb_log=False, tensorboard_log=False)
    with ExitStack() as stack:
        events = EventWriter(directory.metrics_path) if world.is_first else NoEvents()
        stack.enter_context(events)
        tracking = Tracking(config, spec.job_id, directory.path, log)
        stack.callback(tracking.close)
        report = Report(events, tracking, log)
        return Trainer(directory, spec, report, lambda: world.any(should_stop()), log, world).run()


class Trainer:
    """The state of one run between two steps, and the loop that moves it on."""

    def __init__(
        self,
        directory: RunDirectory,
        spec: RunSpec,
        report: Report,
        should_stop: Callable[[], bool],
        log: Callable[[str], None],
        world: World,
    ) -> None:
        config = spec.config
        self._world = world
        self._config, self._job_id = config, spec.job_id
        self._checkpoints = directory.checkpoints_path
        self._report, self._should_stop, self._log = report, should_stop, log
        dataset = self._dataset = Dataset.open(directory.path / spec.dataset_dir)
        dataset.check_vocabulary()
        train_tokens, val_tokens = dataset.tokens("train"), dataset.tokens("val")
        self._batches = Batches(
            train_tokens,
            shape=(config.gradient_accumulation_steps, config.batch_size, config.block_size),
            seed=config.seed,
            stream=Stream.TRAIN,
            share=world.place.share(config),
        )
        self._evaluator = Evaluator(train_tokens, val_tokens, config, should_stop, world)
        self._val_token_bytes = mean_token_bytes(dataset.tokenizer, val_tokens)
        self._prompts = prompts_of(config.sample_prompts, dataset.tokenizer)
        where = _pick_device(config)

        if world.is_first:
            checkpoint.sweep_unfinished(self._checkpoints)
        start = find_starting_point(directory, spec, dataset, log)
        world.check_equal(start.resumed.meta.step if start.resumed else None, "checkpoints")
        self._dtype = world.of_first(_pick_dtype(config, where, start.resumed))
        model = self._model = start.model.train()
        world.spread(model, config.sharding, where)  # which may be too small for all of it
        model.to(where)
        self._optimizer = make_optimizer(model, config, self._dtype)
        execution = Execution()
        if world.size == 1:
            execution = recorded_execution(
                directory.execution_path,
                lambda: choose_execution(model, config.batch_size, self._dtype),
            )
        log(f"micro-batches in {execution.pieces} pieces, {execution.attention} attention")
        self._forward = make_forward(
            model,
            execution,
            self._batches.at(0),
            dtype=self._dtype,
            compile=config.compile,
            log=log,
            world=world,
        )
        self._step = TrainingStep(
            model,
            self._optimizer,
            dtype=self._dtype,
            grad_clip=config.grad_clip,
            forward=self._forward,
            world=world,
            pieces=execution.pieces,
        )
        self._window = Window(config.spike_threshold)
        self._writer = CheckpointWriter(
            self._checkpoints, config.keep_checkpoints, report, log, world
        )
        self._progress = Progress()
        self._limits = Limits(config, len(train_tokens), world)
        report.started(self._describe_run())
        world.diverge_draws(config.seed, step=0)
        seconds = 0.0
        if start.resumed is not None:
            self._go_on(start.resumed)
            seconds = start.resumed.snapshot.seconds
        self._limits.go_on(self._progress.step, seconds)
        log(f"{STARTED_PREFIX}{self._progress.step}")

    def run(self) -> ExitCode:
        """The loop. One turn is one step; checkpoints lie between two turns."""
        with (
            self._writer as writer,
            Prefetcher(self._batches, self._model.device, self._progress.step) as batches,
        ):
            while True:
                writer.poll()
                time_is_up = self._limits.time_is_up(self._progress)
                try:
                    evaluated = self._evaluation_is_due(time_is_up) and self._evaluate()
                except Interrupted:
                    self._save(announce=False)  # the evaluation is still to come
                    writer.wait()
                    return ExitCode.INTERRUPTED
                except Diverged as error:
                    self._go_back(error, batches)
                    continue
                is_due = self._checkpoint_is_due(evaluated)
                if is_due and not self._progress.skips:
                    self._progress.plan_checkpoint()
                if (ending := self._limits.ending(self._progress, time_is_up)) is not None:
                    self._save()
                    writer.wait()
                    self._report.sync()  # nobody will offer the last event again
                    return ending
                if self._should_stop():
                    self._save()
                    writer.wait()
                    return ExitCode.INTERRUPTED
                if is_due:
                    self._save()
                self._update(batches)

    def _update(self, batches: Prefetcher) -> None:
        """Takes a step, or leaves it out, or goes back to a checkpoint."""
        config, progress = self._config, self._progress
        started = time.perf_counter()
        rate = learning_rate(config, progress.step) * self._rate_factor()
        set_learning_rate(self._optimizer, config, rate)
        result = self._step(*batches.next(), accept=self._window.accepts)
        self._report.timed(time.perf_counter() - started)
        if not result.applied:
            self._leave_out(result)
            if progress.skips >= config.max_skips:
                what = f"{progress.skips} steps in a row could not be used"
                reason = f"{what}, the last with loss {result.loss:.4g}"
                error = Diverged(f"{reason} and gradient norm {result.grad_norm:.4g}")
                self._go_back(error, batches, result)
            return
        self._window.add(result.loss, result.grad_norm)
        progress.applied_step(result.clipped)
        if progress.step % config.log_interval == 0 or progress.step == self._limits.last_step:
            self._report.stepped(progress.step, rate, result, progress.clipped_steps)
            progress.clipped_steps = 0

    def _leave_out(self, result: StepResult) -> None:
        """Counts a step whose loss or gradient cannot be used; the weights stay as they are."""
        event = self._describe_divergence(Action.SKIPPED, result)
        self._report.diverged(event)
        self._progress.step += 1
        self._progress.skips += 1

    def _go_back(
        self, error: Diverged, batches: Prefetcher, result: StepResult | None = None
    ) -> None:
        """Goes on from the last good checkpoint with a lower learning rate. Raises Diverged.

        A crash before the end of this finds the checkpoints of before, and comes here again.
        """
        config, progress = self._config, self._progress
        self._writer.wait_quietly()
        folder = self._world.of_first(self._last_good_checkpoint())
        kept = "none" if folder is None else f"step {checkpoint_folder.step_of(folder)}"
        if folder is None or progress.rollbacks >= config.max_rollbacks:
            self._report.sync()
            raise Diverged(
                f"{error}, after step {progress.step}; it went back {progress.rollbacks} times; "
                f"the last good checkpoint is {kept}; a lower learning_rate, more warmup_iters or "
                "grad_clip may help"
            ) from error
        model, resumed = read_checkpoint(folder, config)
        rollbacks = progress.rollbacks + 1
        factor = config.rollback_lr_factor**rollbacks
        event = self._describe_divergence(Action.ROLLED_BACK, result)
        event = replace(event, rolled_back_to_step=resumed.meta.step, learning_rate_factor=factor)
        self._report.diverged(event)
        if self._world.is_first:
            checkpoint_folder.drop_newer(self._checkpoints, resumed.meta.step)
        whole, weights = model.state_dict(), self._model.state_dict()
        self._model.load_state_dict(
            {name: self._world.part_like(weights[name], whole[name]) for name in weights}
        )
        self._restore(resumed)
        self._progress.good_step = resumed.meta.step  # the one before it may be gone
        self._progress.rollbacks = self._report.rollbacks = rollbacks
        self._progress.skips = 0
        self._save()  # from here on, a crash does not come this way again
        batches.seek(self._progress.step)

    def _last_good_checkpoint(self) -> Path | None:
        """The newest planned one that a step was taken from, else the newest that can be used."""
        if (good_step := self._progress.good_step) is not None:
            folder = checkpoint_folder.step_folder(self._checkpoints, good_step)
            with suppress(CheckpointDamaged, FileNotFoundError):
                checkpoint.verify(folder)
                return folder
        return checkpoint_folder.newest_valid(self._checkpoints)

    def _rate_factor(self) -> float:
        return self._config.rollback_lr_factor**self._progress.rollbacks

    def _evaluation_is_due(self, time_is_up: bool) -> bool:
        step, config = self._progress.step, self._config
        scheduled = step % config.eval_interval == 0 or step >= self._limits.last_step or time_is_up
        return config.eval_only or (scheduled and step != self._progress.evaluated_step)

    def _evaluate(self) -> bool:
        """Measures both losses and writes samples; all of it or nothing. Returns True.

        Raises Interrupted if a stop is asked for meanwhile, Diverged if a loss is not finite.
        """
        started = time.perf_counter()
        train_loss, val_loss = self._evaluator(self._model, self._forward, self._dtype)
        seconds = time.perf_counter() - started
        step = self._progress.step
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise Diverged(f"the loss is {train_loss} (train), {val_loss} (val)")
        samples = [self._write_sample(index, ids) for index, ids in enumerate(self._prompts)]
        is_best = self._progress.evaluated(val_loss, self._config.early_stop_min_delta)
        token_bytes = self._val_token_bytes
        bits = None if token_bytes is None else val_loss / math.log(2) / token_bytes
        self._report.evaluated(
            Evaluation(step, train_loss, val_loss, is_best, seconds, bits), samples
        )
        return True

    def _write_sample(self, index: int, prompt_ids: list[int]) -> Sample:
        text = write_sample(
            self._model,
            self._dataset.tokenizer,
            prompt_ids,
            num_tokens=self._config.sample_tokens,
            seed=self._config.seed,
            step=self._progress.step,
            index=index,
            dtype=self._dtype,
            should_stop=self._should_stop,
        )
        prompt = self._dataset.tokenizer.decode(prompt_ids)
        return Sample(self._progress.step, prompt, text, index)

    def _checkpoint_is_due(self, evaluated: bool) -> bool:
        step, interval = self._progress.step, self._config.checkpoint_interval
        improved = self._progress.best_step == step or self._config.always_save_checkpoint
        if evaluated and improved:
            return True
        return 0 < step != self._progress.planned_step and interval > 0 and step % interval == 0

    def _save(self, announce: bool = True) -> None:
        """Starts to write a checkpoint. A full disk costs it, not the run that goes on."""
        progress = self._progress
        needed = (progress.best_step, progress.good_step, progress.planned_step)
        self._writer.save(
            self._describe_checkpoint(),
            self._take_state,
            keep_steps={step for step in needed if step is not None},
            announce=announce,
        )

    def _take_state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights = self._world.whole(self._model.state_dict())
        return weights, take_tensors(self._model, self._optimizer, self._world)

    def _go_on(self, resumed: Resumed) -> None:
        """Takes up a run where an earlier attempt left it."""
        self._restore(resumed)
        if not self._evaluation_is_due(time_is_up=False):
            # a crash may have come between the checkpoint and its event
            self._report.record(written(resumed.meta))

    def _restore(self, resumed: Resumed) -> None:
        """The state in which a checkpoint was taken, but for weights. Random numbers come last."""
        self._progress, self._writer.saved = resumed.snapshot.progress, resumed.meta
        self._report.rollbacks = self._progress.rollbacks
        self._window.load_state(resumed.snapshot.window)
        self._step.load_scaler_state(resumed.snapshot.scaler)
        self._world.diverge_draws(self._config.seed, resumed.meta.step)
        restore_tensors(self._model, self._optimizer, resumed.tensors, self._world)

    def _describe_divergence(self, action: Action, result: StepResult | None) -> Divergence:
        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return Divergence(
            step=self._progress.step,
            action=action,
            loss=None if result is None else finite(result.loss),
            grad_norm=None if result is None else finite(result.grad_norm),
            rolled_back_to_step=None,
            learning_rate_factor=self._rate_factor(),
        )

    def _describe_run(self) -> RunStarted:
        where, meta = self._model.device, self._dataset.meta
        peak = device.measure_peak(where, self._dtype, bandwidth=False)  # all of them at once
        peak_flops = None if peak.flops is None else self._world.sum(peak.flops)
        estimate = estimate_memory(self._model.config, self._config, where)
        return RunStarted(
            model_config=self._model.config,
            parameter_count=self._model.parameter_count(),
            tokenizer=self._dataset.tokenizer.kind,
            train_tokens=meta.train_tokens,
            val_tokens=meta.val_tokens,
            tokens_per_step=self._config.tokens_per_step,
            device=where.type,
            device_name=device.device_name(where),
            dtype=device.dtype_name(self._dtype),
            peak_flops=peak_flops,
            peak_source=peak.source,
            max_iters=self._limits.last_step,
            processes=self._world.size,
            estimated_memory_bytes=estimate.on_gpu if where.type == "cuda" else estimate.total,
        )

    def _describe_checkpoint(self) -> CheckpointMeta:
        progress = self._progress
        snapshot = Snapshot(
            progress=replace(progress),
            dtype=device.dtype_name(self._dtype),
            scaler=self._step.scaler_state(),
            window=self._window.state(),
            seconds=self._limits.seconds(),
            config=self._config.to_mapping(),
            dataset=dataset_identity(self._dataset),
            torch_version=torch.__version__,
            threads=torch.get_num_threads(),
        )
        return CheckpointMeta(
            step=progress.step,
            model_config=self._model.config,
            tokenizer=self._dataset.tokenizer.to_json(),
            val_loss=progress.val_loss,
            best_val_loss=progress.best_val_loss,
            best_step=progress.best_step,
            create_time=time.time(),
            job_id=self._job_id,
            rollbacks=progress.rollbacks,
            train=snapshot.to_json(),
        )


def _say_nothing(line: str) -> None:
    """The log of a process that is not the first one."""


def _pick_device(config: TrainConfig) -> torch.device:
    try:
        return device.pick_device(config.device)
    except ValueError as error:
        raise InvalidConfig([Violation("device", str(error))]) from error


def _pick_dtype(config: TrainConfig, where: torch.device, resumed: Resumed | None) -> torch.dtype:
    """The config's type. A measured choice stays for the whole run: it changes every number."""
    name = config.dtype
    if name == "auto" and resumed is not None:
        name = resumed.snapshot.dtype
    return device.pick_dtype(name, where)
