"""Events of a job as lines of text."""

from client.commands.figures import count, duration, percent, size, word
from protos.nanogpt.v1.training_pb2 import (
    Divergence,
    Job,
    RunStarted,
    StateChange,
    StepMetrics,
    StreamMetricsResponse,
)

ENDED = (Job.STATE_SUCCEEDED, Job.STATE_FAILED, Job.STATE_CANCELLED)
"""States that a job does not leave."""


def event_text(event: StreamMetricsResponse, max_iters: int) -> str:
    """One line about the event; empty for a heartbeat."""
    match event.WhichOneof("event"):
        case "started":
            return started_text(event.started)
        case "step":
            step = f"step {count(event.step.step)}/{count(max_iters)}"
            return f"{step}  loss {event.step.loss:.4f}  {step_text(event.step, max_iters)}"
        case "evaluation":
            found = event.evaluation
            best = ", the best so far" if found.is_best else ""
            known = found.HasField("val_bits_per_byte")
            bits = f", {found.val_bits_per_byte:.3f} bits/byte" if known else ""
            return (
                f"step {count(found.step)}: train loss {found.train_loss:.4f}, "
                f"val loss {found.val_loss:.4f}{best}{bits}"
            )
        case "checkpoint":
            written = event.checkpoint
            return f"step {count(written.step)}: checkpoint of {size(written.size_bytes)}"
        case "sample":
            return f"step {count(event.sample.step)}: wrote {event.sample.text!r}"
        case "skipped":
            first, last = event.skipped.first_sequence, event.skipped.last_sequence
            return f"too slow for events {count(first)} to {count(last)}: left out"
        case "divergence":
            return divergence_text(event.divergence)
        case "state_change":
            return f"state: {state_change_text(event.state_change)}"
    return ""


def started_text(run: RunStarted) -> str:
    """What is trained, on what and where."""
    return (
        f"{count(run.parameter_count)} parameters on {device_text(run)}; "
        f"{run.tokenizer} tokens: {count(run.train_tokens)} train, {count(run.val_tokens)} val; "
        f"{count(run.max_iters)} steps of {count(run.tokens_per_step)}"
    )


def divergence_text(found: Divergence) -> str:
    """A step that was left out, or a return to an earlier one."""
    loss = f"{found.loss:.4g}" if found.HasField("loss") else "not finite"
    norm = f"{found.grad_norm:.4g}" if found.HasField("grad_norm") else "not finite"
    if found.action == Divergence.ACTION_ROLLED_BACK:
        return (
            f"step {count(found.step)}: diverged, back to step "
            f"{count(found.rolled_back_to_step)} with {found.learning_rate_factor:g} of the "
            "learning rate"
        )
    return f"step {count(found.step + 1)}: left out, loss {loss}, gradient {norm}"


def device_text(run: RunStarted) -> str:
    """The device and its arithmetic, such as `cpu (AMD EPYC), float32`."""
    return f"{run.device} ({run.device_name}), {run.dtype}"


def step_text(step: StepMetrics, max_iters: int) -> str:
    """Speed and time left, without the loss."""
    parts = [f"{count(round(step.tokens_per_second))} tokens/s"]
    if step.HasField("mfu"):
        parts.append(f"MFU {percent(step.mfu)}")
    parts.append(f"{duration((max_iters - step.step) * step.step_seconds)} left")
    return "  ".join(parts)


def state_change_text(change: StateChange) -> str:
    """The state, why, and the error if there is one."""
    text = word(Job.State.Name(change.state), "STATE_")
    if change.reason:
        text += f" ({word(Job.Reason.Name(change.reason), 'REASON_')})"
    return f"{text}: {change.error}" if change.error else text
