"""The playground: text as it is sampled.

POST /api/generate    server-sent events: `queued` while it waits, `started`, `delta`, `finished`
"""

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nanogpt.config import ModelConfig
from nanogpt.inference.events import Delta, Finished, Queued, Started
from nanogpt.inference.logprobs import TokenLogprob
from nanogpt.inference.request import Request as Generation
from nanogpt.option import Violation
from nanogpt.tokenizer import StreamDecoder, Tokenizer
from server.gate import Gate
from server.models.loaded import LoadedModel
from server.models.store import ModelStore
from server.serving.generation_request import new_request
from server.serving.request_stream import RequestStream
from server.web.body import Body
from server.web.event_stream import HEARTBEAT, HEARTBEAT_SECONDS, EventStream, message


class GenerationApi:
    """Streams what models write."""

    def __init__(self, models: ModelStore, gate: Gate, max_deadline_seconds: float) -> None:
        self._models = models
        self._gate = gate
        self._max_deadline_seconds = max_deadline_seconds

    def routes(self) -> list[Route]:
        return [Route("/api/generate", self.generate, methods=["POST"])]

    async def generate(self, request: Request) -> Response:
        body = await Body.read(request)
        return EventStream(self._events(body), self._max_deadline_seconds)

    async def _events(self, body: Body) -> AsyncGenerator[str, None]:
        received_at = time.monotonic()
        async with AsyncExitStack() as stack:
            stack.enter_context(self._gate.passing())
            model = await stack.enter_async_context(self._models.acquire(body.text("model")))
            wanted = await model.engine.prepare(
                partial(_request, body, model.model_config, model.tokenizer),
                len(body.text("prompt").encode()),  # a token is at least one byte of text
            )
            stream = stack.enter_context(model.engine.submitted(wanted, received_at))
            pieces = Pieces(model.tokenizer, wanted)
            unfinished = wanted.num_samples
            async for event in stream.events(HEARTBEAT_SECONDS):
                if event is None:
                    yield HEARTBEAT
                elif isinstance(event, Queued):
                    yield message({"kind": "queued", "requests_ahead": event.requests_ahead})
                elif isinstance(event, Delta):
                    yield message(pieces.delta(event))
                elif isinstance(event, Finished):
                    unfinished -= 1
                    yield message(_finished(event, None if unfinished else stream))
                elif isinstance(event, Started):
                    yield message(_started(wanted, model))


class Pieces:
    """Tokens of a request's samples as text, each token's own part of it."""

    def __init__(self, tokenizer: Tokenizer, request: Generation) -> None:
        self._tokenizer = tokenizer
        self._decoders = [StreamDecoder(tokenizer) for _ in range(request.num_samples)]

    def delta(self, delta: Delta) -> dict[str, Any]:
        decoder = self._decoders[delta.sample_index]
        return {
            "kind": "delta",
            "sample": delta.sample_index,
            "text": delta.text,
            "num_tokens": len(delta.token_ids),
            "tokens": [
                {"text": decoder.push([logprob.token_id]), **self._logprob(logprob)}
                for logprob in delta.logprobs
            ],
        }

    def _logprob(self, logprob: TokenLogprob) -> dict[str, Any]:
        return {
            "id": logprob.token_id,
            "logprob": logprob.logprob,
            "rank": logprob.rank,
            "top": [
                {"text": self._tokenizer.decode([other.token_id]), "logprob": other.logprob}
                for other in logprob.top
            ],
        }


def _started(request: Generation, model: LoadedModel) -> dict[str, Any]:
    return {
        "kind": "started",
        "model": model.name,
        "weight_version": model.weight_version,
        "precision": model.precision,
        "prompt_tokens": len(request.prompt_ids),
        "sampling": asdict(request.sampling),
        "stopping": asdict(request.stopping),
    }


def _finished(event: Finished, whole: RequestStream | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "kind": "finished",
        "sample": event.sample_index,
        "reason": event.reason,
        "stop_string": event.stop_string,
    }
    if whole is not None:
        body["usage"] = {
            "prompt_tokens": whole.prompt_tokens,
            "completion_tokens": whole.completion_tokens,
            "cached_tokens": whole.cached_tokens,
        }
        body["timings"] = asdict(whole.timings)
    return body


def _request(body: Body, config: ModelConfig, tokenizer: Tokenizer) -> Generation:
    """What the visitor asks for. Raises InvalidArgument naming every field that is wrong."""
    return new_request(
        body.text("prompt"),
        _sampling(body),
        _stopping(body),
        config,
        tokenizer,
        num_samples=body.integer("num_samples", 1),
        logprobs=body.boolean("logprobs"),
        top_logprobs=body.integer("top_logprobs", 0),
        priority=body.integer("priority", 0),
        use_prefix_cache=body.boolean("use_prefix_cache", True),
        found=body.found(),
    )


def _sampling(body: Body) -> dict[str, Any]:
    """JSON has no whole numbers as keys."""
    values = body.mapping("sampling")
    bias = values.get("logit_bias", {})
    try:
        values["logit_bias"] = {int(id): float(value) for id, value in bias.items()}
    except (AttributeError, OverflowError, TypeError, ValueError):
        del values["logit_bias"]
        problem = "must be an object with numbers by the ids of their tokens"
        body.violations.append(Violation("sampling.logit_bias", problem))
    return values


def _stopping(body: Body) -> dict[str, Any]:
    values = body.mapping("stopping")
    for key, kind, items in (
        ("stop_strings", str, "texts"),
        ("stop_token_ids", int, "whole numbers"),
    ):
        given = values.pop(key, [])
        if isinstance(given, list) and all(type(item) is kind for item in given):
            values[key] = tuple(given)
        else:
            body.violations.append(Violation(f"stopping.{key}", f"must be a list of {items}"))
    return values
