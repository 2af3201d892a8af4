"""One training run: nanoGPT's loop, with checkpoints to go on from and a record of what happened.

It reads and writes the run directory and reads the dataset. Who started it, and why it is asked to
stop, it does not know.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch

from nanogpt import checkpoint, device
from nanogpt.checkpoint import CheckpointMeta
from nanogpt.config import InvalidConfig, TrainConfig, Violation
from nanogpt.datasets.dataset import Dataset
from nanogpt.training.batches import Batches, Prefetcher, Stream
from nanogpt.training.compile import compiled_forward
from nanogpt.training.evaluate import Evaluator, Interrupted
from nanogpt.training.events import (
    CheckpointWritten,
    Evaluation,
    EventWriter,
    RunStarted,
    Sample,
)
from nanogpt.training.optimizer import make_optimizer, set_learning_rate
from nanogpt.training.report import Report
from nanogpt.training.run_directory import STARTED_PREFIX, ExitCode, RunDirectory, RunSpec
from nanogpt.training.sample import write_sample
from nanogpt.training.schedule import learning_rate
from nanogpt.training.snapshot import (
    Progress,
    Snapshot,
    dataset_identity,
    restore_tensors,
    take_tensors,
)
from nanogpt.training.starting_point import Resumed, find_starting_point
from nanogpt.training.step import Diverged, StepResult, TrainingStep
from nanogpt.training.tracking import Tracking


def train(
    directory: RunDirectory,
    spec: RunSpec,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = print,
) -> ExitCode:
    """Trains until the end (DONE) or until a stop is asked for (INTERRUPTED).

    Goes on from the newest valid checkpoint if there is one, and writes one either way. Raises
    InvalidConfig, BadDataset, Diverged, and whatever torch raises when memory runs out.
    """
    with ExitStack() as stack:
        events = stack.enter_context(EventWriter(directory.metrics_path))
        tracking = Tracking(spec.config, spec.job_id, log)
        stack.callback(tracking.close)
        report = Report(events, tracking, log)
        return Trainer(directory, spec, report, should_stop, log).run()


class Trainer:
    """The state of one run between two steps, and the loop that moves it on."""

    def __init__(
        self,
        directory: RunDirectory,
        spec: RunSpec,
        report: Report,
        should_stop: Callable[[], bool],
        log: Callable[[str], None],
    ) -> None:
        config = spec.config
        self._config, self._job_id = config, spec.job_id
        self._checkpoints = directory.checkpoints_path
        self._report, self._should_stop, self._log = report, should_stop, log
        dataset = self._dataset = Dataset.open(directory.path / spec.dataset_dir)
        train_tokens, val_tokens = dataset.tokens("train"), dataset.tokens("val")
        self._batches = Batches(
            train_tokens,
            shape=(config.gradient_accumulation_steps, config.batch_size, config.block_size),
            seed=config.seed,
            stream=Stream.TRAIN,
        )
        self._evaluator = Evaluator(train_tokens, val_tokens, config, should_stop)
        where = _pick_device(config)

        checkpoint.sweep_unfinished(self._checkpoints)
        start = find_starting_point(directory, spec, dataset, log)
        self._dtype = _pick_dtype(config, where, start.resumed)
        model = self._model = start.model.to(where).train()
        self._optimizer = make_optimizer(model, config)
        inputs, targets = (x[0].to(where) for x in self._batches.at(0))
        self._forward = compiled_forward(
            model, config.compile, dtype=self._dtype, example=(inputs, targets), log=log
        )
        self._step = TrainingStep(
            model,
            self._optimizer,
            dtype=self._dtype,
            grad_clip=config.grad_clip,
            forward=self._forward,
        )
        self._progress = Progress()
        self._saved: CheckpointMeta | None = None
        report.started(self._describe_run())
        if start.resumed is not None:
            self._restore(start.resumed)
        log(f"{STARTED_PREFIX}{self._progress.step}")

    def run(self) -> ExitCode:
        """The loop. One turn is one optimizer update; checkpoints lie between two turns."""
        config, progress = self._config, self._progress
        with Prefetcher(self._batches, self._model.device, progress.step) as batches:
            while True:
                try:
                    evaluated = self._evaluation_is_due() and self._evaluate()
                except Interrupted:
                    self._save_if_possible(announce=False)  # the evaluation is still to come
                    return ExitCode.INTERRUPTED
                if config.eval_only or progress.step >= config.max_iters:
                    self._save()
                    self._report.sync()  # nobody will offer the last event again
                    return ExitCode.DONE
                if self._should_stop():
                    self._save_if_possible()
                    return ExitCode.INTERRUPTED
                if self._checkpoint_is_due(evaluated):
                    self._save_if_possible()

                rate = learning_rate(config, progress.step)
                result = self._update(batches, rate)
                if progress.step % config.log_interval == 0 or progress.step == config.max_iters:
                    self._report.stepped(progress.step, rate, result)

    def _update(self, batches: Prefetcher, rate: float) -> StepResult:
        started = time.perf_counter()
        set_learning_rate(self._optimizer, rate)
        inputs, targets = batches.next()
        try:
            result = self._step(inputs, targets)
        except Diverged as error:
            kept = "none" if self._saved is None else f"step {self._saved.step}"
            raise Diverged(
                f"{error} in step {self._progress.step + 1}; the newest checkpoint is {kept}; "
                "a lower learning_rate, more warmup_iters or grad_clip may help"
            ) from error
        self._progress.step += 1
        self._report.timed(time.perf_counter() - started)
        return result

    def _evaluation_is_due(self) -> bool:
        step, config = self._progress.step, self._config
        scheduled = step % config.eval_interval == 0 or step >= config.max_iters
        return config.eval_only or (scheduled and step != self._progress.evaluated_step)

    def _evaluate(self) -> bool:
        """Measures both losses and writes a sample; all of it or nothing. Returns True.

        Raises Interrupted if a stop is asked for meanwhile.
        """
        started = time.perf_counter()
        train_loss, val_loss = self._evaluator(self._model, self._forward, self._dtype)
        seconds = time.perf_counter() - started
        step = self._progress.step
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise Diverged(f"the loss is {train_loss} (train), {val_loss} (val) after step {step}")
        prompt, text = write_sample(
            self._model,
            self._dataset.tokenizer,
            seed=self._config.seed,
            step=step,
            dtype=self._dtype,
            should_stop=self._should_stop,
        )
        is_best = self._progress.evaluated(val_loss)
        self._report.evaluated(
            Evaluation(step, train_loss, val_loss, is_best, seconds), Sample(step, prompt, text)
        )
        return True

    def _checkpoint_is_due(self, evaluated: bool) -> bool:
        step, interval = self._progress.step, self._config.checkpoint_interval
        improved = self._progress.best_step == step or self._config.always_save_checkpoint
        return (evaluated and improved) or (interval > 0 and step > 0 and step % interval == 0)

    def _save_if_possible(self, announce: bool = True) -> None:
        """A full disk costs a checkpoint, not the run: the one before is still whole."""
        try:
            self._save(announce)
        except OSError as error:
            self._log(f"step {self._progress.step}: no checkpoint: {error}")

    def _save(self, announce: bool = True) -> None:
        """Writes a checkpoint of this step, or only its meta if the step has one already."""
        folder = checkpoint.step_folder(self._checkpoints, self._progress.step)
        self._report.sync()  # a run that resumes from here does not repeat what came before
        meta, saved = self._describe_checkpoint(), self._saved
        if saved is None or saved.step != meta.step:
            tensors = take_tensors(self._model, self._optimizer)
            meta = checkpoint.save_checkpoint(folder, meta, self._model.state_dict(), tensors)
        else:
            meta = replace(meta, files=saved.files, create_time=saved.create_time)
            if meta != saved:
                checkpoint.write_meta(folder, meta)
        self._saved = meta
        self._log(f"step {meta.step}: checkpoint {folder.name}, {meta.size_bytes:,} bytes")
        if announce:
            self._report.record(_written(meta))
        checkpoint.prune_checkpoints(
            self._checkpoints, meta.step, self._config.keep_checkpoints, meta.best_step
        )

    def _restore(self, resumed: Resumed) -> None:
        """Goes on where a checkpoint was taken. The random numbers come last."""
        self._progress, self._saved = resumed.snapshot.progress, resumed.meta
        if not self._evaluation_is_due():
            # a crash may have come between the checkpoint and its event
            self._report.record(_written(resumed.meta))
        self._step.load_scaler_state(resumed.snapshot.scaler)
        restore_tensors(self._model, self._optimizer, resumed.tensors)

    def _describe_run(self) -> RunStarted:
        where, meta = self._model.device, self._dataset.meta
        peak = device.measure_peak(where, self._dtype, bandwidth=False)
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
            peak_flops=peak.flops,
            peak_source=peak.source,
            max_iters=self._config.max_iters,
        )

    def _describe_checkpoint(self) -> CheckpointMeta:
        progress = self._progress
        snapshot = Snapshot(
            progress=progress,
            dtype=device.dtype_name(self._dtype),
            scaler=self._step.scaler_state(),
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
            train=snapshot.to_json(),
        )


def _written(meta: CheckpointMeta) -> CheckpointWritten:
    return CheckpointWritten(
        meta.step, meta.val_loss, meta.is_best, meta.size_bytes, meta.create_time
    )


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
