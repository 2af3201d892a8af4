"""Messages of Score <-> a request of the engine and the log-probabilities it returns."""

import math
import secrets

from nanogpt.inference.logprobs import TokenLogprob
from nanogpt.inference.request import Request, number_violations
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.option import Violation
from nanogpt.tokenizer import Tokenizer, UnknownCharacters
from protos.nanogpt.v1 import inference_pb2 as pb
from server.errors import InvalidArgument
from server.services.generation import MAX_ENTRIES, logprob_to_pb

MAX_TOKENS = 65536
"""Tokens that one call scores."""


def score_tokens_at_most(message: pb.ScoreRequest) -> int:
    """How many tokens the text may have, known before it is encoded, unless it has too many."""
    return min(MAX_TOKENS, len(message.token_ids.ids) or len(message.text.encode()))


def score_request_from_pb(message: pb.ScoreRequest, tokenizer: Tokenizer) -> Request:
    """The request, with a new id. Encodes the text: see EngineThread.prepare.

    Raises InvalidArgument naming every field that is wrong.
    """
    found = number_violations({"top_logprobs": message.top_logprobs})
    path = message.WhichOneof("input") or "text"
    token_ids = list(message.token_ids.ids)
    if path == "text":
        try:
            token_ids = tokenizer.encode(message.text)
        except UnknownCharacters as error:
            raise InvalidArgument([*found, Violation("text", f"has {error}")]) from None
    most = min(MAX_TOKENS, MAX_ENTRIES // (1 + max(0, message.top_logprobs)))
    if not 2 <= len(token_ids) <= most:
        suffix = f" with top_logprobs {message.top_logprobs}" if message.top_logprobs else ""
        problem = f"must have 2 to {most} tokens{suffix}, got {len(token_ids)}"
        found.append(Violation(path, problem))
    bad = [(i, id) for i, id in enumerate(token_ids) if not 0 <= id < tokenizer.vocab_size]
    found += [
        Violation(f"token_ids[{i}]", f"must be in [0, {tokenizer.vocab_size}), got {id}")
        for i, id in bad[:16]
    ]
    if found:
        raise InvalidArgument(found)
    return Request(
        id=secrets.token_hex(8),
        prompt_ids=token_ids,
        sampling=SamplingParams(),
        stopping=StoppingParams(),
        prompt_logprobs=message.top_logprobs,
        scores_only=True,
    )


def score_to_pb(
    logprobs: list[TokenLogprob], tokenizer: Tokenizer, weight_version: int
) -> pb.ScoreResponse:
    """The answer; at least one token was scored."""
    nats = -math.fsum(logprob.logprob for logprob in logprobs)
    num_bytes = sum(len(tokenizer.token_bytes(logprob.token_id)) for logprob in logprobs)
    loss = nats / len(logprobs)
    return pb.ScoreResponse(
        logprobs=map(logprob_to_pb, logprobs),
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=nats / math.log(2) / num_bytes,
        weight_version=weight_version,
    )
