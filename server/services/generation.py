"""Messages of Generate <-> requests and events of the engine.

What they ask for is completed and checked in generation_request.py.
"""

from typing import Any

from nanogpt.config import ModelConfig
from nanogpt.inference.events import Delta, Finished, FinishReason, Queued
from nanogpt.inference.logprobs import TokenLogprob
from nanogpt.inference.request import Request, number_violations
from nanogpt.inference.sampling_params import MAX_LOGIT_BIASES, SamplingParams, StoppingParams
from nanogpt.option import Violation
from nanogpt.tokenizer import Tokenizer
from protos.nanogpt.v1 import inference_pb2 as pb
from server.errors import InvalidArgument
from server.models.loaded import LoadedModel
from server.services.scalars import decimal
from server.serving.generation_request import new_request, sampling_from, stopping_from
from server.serving.request_stream import RequestStream, Timings

MAX_ECHO_BYTES = 4_000_000
"""A little less than the largest message that the server sends."""

MAX_ENTRIES = 250_000
"""Log-probabilities in one message, alternatives included: each takes up to 16 bytes of the largest
one that the server sends."""

CONTEXT_OVERFLOW = {
    pb.CONTEXT_OVERFLOW_UNSPECIFIED: "roll",
    pb.CONTEXT_OVERFLOW_ROLL: "roll",
    pb.CONTEXT_OVERFLOW_STOP: "stop",
    pb.CONTEXT_OVERFLOW_EXACT: "exact",
}
CONTEXT_OVERFLOW_NUMBERS = {name: number for number, name in CONTEXT_OVERFLOW.items()}

FINISH_REASONS: dict[FinishReason, pb.FinishReason] = {
    "length": pb.FINISH_REASON_LENGTH,
    "end_of_text": pb.FINISH_REASON_END_OF_TEXT,
    "stop": pb.FINISH_REASON_STOP,
}


def request_from_pb(
    message: pb.GenerateRequest, config: ModelConfig, tokenizer: Tokenizer
) -> tuple[Request, str | None]:
    """The request, with a new id, and its prompt as text if an echo is wanted. Encodes the prompt:
    see EngineThread.prepare.

    Raises InvalidArgument naming every field that is wrong.
    """
    response = message.response
    by_id = message.WhichOneof("input") == "prompt_token_ids"
    request = new_request(
        list(message.prompt_token_ids.ids) if by_id else message.prompt,
        _sampling_from_pb(message.sampling),
        _stopping_from_pb(message.stopping),
        config,
        tokenizer,
        found=_violations_of(message),
        num_samples=_numbers(message)["num_samples"],
        logprobs=response.logprobs,
        top_logprobs=response.top_logprobs,
        prompt_logprobs=response.prompt_logprobs if response.HasField("prompt_logprobs") else None,
        priority=message.priority,
        use_prefix_cache=not message.HasField("use_prefix_cache") or message.use_prefix_cache,
        max_draft_tokens=message.max_draft_tokens,
    )
    _check_entries(request)
    return request, _echo(request, tokenizer) if response.echo else None


def prompt_tokens_at_most(message: pb.GenerateRequest) -> int:
    """How many tokens the prompt may have, known before it is encoded: a token is at least one
    byte of text."""
    return len(message.prompt_token_ids.ids) or len(message.prompt.encode())


def violations_of_any_model(message: pb.GenerateRequest) -> list[Violation]:
    """What is wrong with a request whatever the model."""
    _, sampling = sampling_from(_sampling_from_pb(message.sampling))
    _, stopping = stopping_from(_stopping_from_pb(message.stopping))
    return sampling + _violations_of(message) + stopping + number_violations(_numbers(message))


def queued_to_pb(queued: Queued) -> pb.GenerateResponse:
    return pb.GenerateResponse(queued=pb.Queued(requests_ahead=queued.requests_ahead))


def started_to_pb(
    request: Request,
    model: LoadedModel,
    request_id: str,
    echo: str | None,
    prompt_logprobs: list[TokenLogprob],
) -> pb.GenerateResponse:
    """The first message; `request_id` is the call's, `echo` the prompt if it is wanted."""
    return pb.GenerateResponse(
        started=pb.Started(
            request_id=request_id,
            model=model.name,
            weight_version=model.weight_version,
            precision=model.precision,
            prompt_tokens=len(request.prompt_ids),
            sampling=_sampling_to_pb(request.sampling),
            stopping=_stopping_to_pb(request.stopping),
            prompt=echo,
            prompt_token_ids=None if echo is None else request.prompt_ids,
            prompt_logprobs=map(logprob_to_pb, prompt_logprobs),
        )
    )


def delta_to_pb(delta: Delta) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        delta=pb.Delta(
            sample_index=delta.sample_index,
            text=delta.text,
            token_ids=delta.token_ids,
            logprobs=[logprob_to_pb(logprob) for logprob in delta.logprobs],
        )
    )


def finished_to_pb(finished: Finished, whole: RequestStream | None) -> pb.GenerateResponse:
    """The end of a sample; `whole` is the request if this was its last one."""
    message = pb.Finished(
        sample_index=finished.sample_index,
        reason=FINISH_REASONS[finished.reason],
        stop_string=finished.stop_string,
        stop_token_id=finished.stop_token_id,
    )
    if whole is not None:
        message.usage.prompt_tokens = whole.prompt_tokens
        message.usage.completion_tokens = whole.completion_tokens
        message.usage.cached_tokens = whole.cached_tokens
        message.usage.drafted_tokens = whole.drafted_tokens
        message.usage.accepted_tokens = whole.accepted_tokens
        message.timings.CopyFrom(_timings_to_pb(whole.timings))
    return pb.GenerateResponse(finished=message)


def _numbers(message: pb.GenerateRequest) -> dict[str, int]:
    """Numbers of a request whose range no model changes, by path."""
    return {
        "num_samples": message.num_samples if message.HasField("num_samples") else 1,
        "response.top_logprobs": message.response.top_logprobs,
        "response.prompt_logprobs": message.response.prompt_logprobs,
        "priority": message.priority,
        "max_draft_tokens": message.max_draft_tokens,
    }


def _check_entries(request: Request) -> None:
    """Raises InvalidArgument if the prompt's log-probabilities do not fit into one message."""
    wanted, num_tokens = request.prompt_logprobs, len(request.prompt_ids)
    if wanted is not None and (entries := num_tokens * (1 + wanted)) > MAX_ENTRIES:
        problem = f"makes {entries} numbers for this prompt; at most {MAX_ENTRIES} are returned"
        raise InvalidArgument([Violation("response.prompt_logprobs", problem)])


def _echo(request: Request, tokenizer: Tokenizer) -> str:
    """The prompt's text. Raises InvalidArgument if text and tokens do not fit into one answer."""
    text = tokenizer.decode(request.prompt_ids)
    num_bytes = len(text.encode()) + pb.TokenIds(ids=request.prompt_ids).ByteSize()
    if num_bytes > MAX_ECHO_BYTES:
        problem = f"takes {num_bytes} bytes for this prompt; at most {MAX_ECHO_BYTES} are returned"
        raise InvalidArgument([Violation("response.echo", problem)])
    return text


def _sampling_from_pb(message: pb.SamplingParams) -> dict[str, Any]:
    """What the caller has set."""
    values: dict[str, Any] = {
        field.name: value if isinstance(value, int) else decimal(value)
        for field, value in message.ListFields()
        if field.name != "logit_bias"
    }
    if len(message.logit_bias) <= MAX_LOGIT_BIASES:  # else refused before they cost anything
        values["logit_bias"] = {id: decimal(bias) for id, bias in message.logit_bias.items()}
    return values


def _violations_of(message: pb.GenerateRequest) -> list[Violation]:
    """What only the message shows."""
    found = []
    if (number := len(message.sampling.logit_bias)) > MAX_LOGIT_BIASES:
        problem = f"must have at most {MAX_LOGIT_BIASES} entries, got {number}"
        found.append(Violation("sampling.logit_bias", problem))
    if (value := message.stopping.context_overflow) not in CONTEXT_OVERFLOW:
        found.append(Violation("stopping.context_overflow", f"has no value {value}"))
    return found


def _stopping_from_pb(message: pb.StoppingParams) -> dict[str, Any]:
    """What the caller has set."""
    values: dict[str, Any] = {
        field.name: value
        for field, value in message.ListFields()
        if field.name not in ("stop_strings", "stop_token_ids", "context_overflow")
    }
    values["stop_strings"] = tuple(message.stop_strings)
    values["stop_token_ids"] = tuple(message.stop_token_ids)
    values["context_overflow"] = CONTEXT_OVERFLOW.get(message.context_overflow, "roll")
    return values


def _sampling_to_pb(sampling: SamplingParams) -> pb.SamplingParams:
    return pb.SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        seed=sampling.seed,
    )


def _stopping_to_pb(stopping: StoppingParams) -> pb.StoppingParams:
    return pb.StoppingParams(
        max_new_tokens=stopping.max_new_tokens,
        stop_strings=stopping.stop_strings,
        stop_token_ids=stopping.stop_token_ids,
        min_new_tokens=stopping.min_new_tokens,
        ignore_end_of_text=stopping.ignore_end_of_text,
        include_stop_string=stopping.include_stop_string,
        context_overflow=CONTEXT_OVERFLOW_NUMBERS[stopping.context_overflow],
    )


def logprob_to_pb(logprob: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=logprob.token_id,
        logprob=logprob.logprob,
        rank=logprob.rank,
        top=[
            pb.TokenLogprob.Alternative(token_id=other.token_id, logprob=other.logprob)
            for other in logprob.top
        ],
    )


def _timings_to_pb(timings: Timings) -> pb.Timings:
    return pb.Timings(
        queue_seconds=timings.queue_seconds,
        prefill_seconds=timings.prefill_seconds,
        time_to_first_token_seconds=timings.time_to_first_token_seconds,
        decode_seconds=timings.decode_seconds,
        total_seconds=timings.total_seconds,
    )
