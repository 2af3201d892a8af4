"""The playground: text as it is sampled.

POST /api/generate    server-sent events: `started`, `delta`, `finished`
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nanogpt.config import (
    InvalidConfig,
    ModelConfig,
    SamplingParams,
    StoppingParams,
    Violation,
    unknown_key,
)
from nanogpt.inference.events import Delta, Event, Finished, Started
from nanogpt.inference.logprobs import TokenLogprob
from nanogpt.inference.request import Request as Generation
from nanogpt.inference.request import validate_request
from nanogpt.tokenizer import StreamDecoder, Tokenizer, UnknownCharacters
from server.errors import InvalidArgument, Unavailable
from server.health import Health
from server.models.loaded import LoadedModel
from server.models.store import ModelStore
from server.serving.request_stream import RequestStream
from server.web.body import Body
from server.web.event_stream import HEARTBEAT, HEARTBEAT_SECONDS, EventStream, message

SEED_BITS = 32
"""Of a seed that the server draws: few enough digits to type again."""

P = TypeVar("P", SamplingParams, StoppingParams)


class GenerationApi:
    """Streams what models write."""

    def __init__(self, models: ModelStore, health: Health) -> None:
        self._models = models
        self._health = health

    def routes(self) -> list[Route]:
        return [Route("/api/generate", self.generate, methods=["POST"])]

    async def generate(self, request: Request) -> Response:
        body = await Body.read(request)
        if self._health.is_draining:
            raise Unavailable("the server is stopping; ask again later")
        return EventStream(self._events(body))

    async def _events(self, body: Body) -> AsyncGenerator[str, None]:
        received_at = time.monotonic()
        async with self._models.acquire(body.text("model")) as model:
            # a token is at least one byte of text
            with model.engine.place(len(body.text("prompt").encode())):
                try:
                    wanted = await asyncio.to_thread(
                        _request, body, model.model_config, model.tokenizer
                    )
                except InvalidArgument:
                    model.engine.reject("validation")
                    raise
            stream = model.engine.submit(wanted, received_at=received_at)
            try:
                pieces = Pieces(model.tokenizer, wanted)
                unfinished = wanted.num_samples
                async for event in _with_heartbeats(stream):
                    if event is None:
                        yield HEARTBEAT
                    elif isinstance(event, Delta):
                        yield message(pieces.delta(event))
                    elif isinstance(event, Finished):
                        unfinished -= 1
                        yield message(_finished(event, None if unfinished else stream))
                    elif isinstance(event, Started):
                        yield message(_started(wanted, model))
            finally:
                stream.cancel()


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


async def _with_heartbeats(stream: RequestStream) -> AsyncGenerator[Event | None, None]:
    """The request's events; None when there was none for a while: it waits for its turn."""
    while True:
        waiting = asyncio.ensure_future(stream.next())
        try:
            while not (await asyncio.wait([waiting], timeout=HEARTBEAT_SECONDS))[0]:
                yield None
            events = waiting.result()
        finally:
            waiting.cancel()
        if not events:
            return
        for event in events:
            yield event


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
    sampling = _checked(SamplingParams, "sampling", body, seed=secrets.randbits(SEED_BITS))
    stopping = _checked(StoppingParams, "stopping", body)
    prompt_ids = _prompt_ids(body, tokenizer)
    generation = Generation(
        id=secrets.token_hex(8),
        prompt_ids=prompt_ids,
        sampling=sampling,
        stopping=stopping,
        num_samples=body.integer("num_samples", 1),
        logprobs=body.boolean("logprobs"),
        top_logprobs=body.integer("top_logprobs", 0),
        priority=body.integer("priority", 0),
        use_prefix_cache=body.boolean("use_prefix_cache", True),
    )
    try:
        validate_request(generation, config, tokenizer)
    except InvalidConfig as error:
        body.violations += error.violations
    body.check()
    return generation


def _prompt_ids(body: Body, tokenizer: Tokenizer) -> list[int]:
    """Tokens of the prompt; an empty one begins a text, as for Generate."""
    prompt = body.text("prompt")
    if not prompt and tokenizer.end_of_text_id is not None:
        return [tokenizer.end_of_text_id]
    try:
        return tokenizer.encode(prompt or "\n")
    except UnknownCharacters as error:
        problem = f"has {error}" if prompt else "must be set: there is no newline to begin"
        body.violations.append(Violation("prompt", problem))
        return [0]


def _checked(kind: type[P], name: str, body: Body, **defaults: Any) -> P:
    """The parameters of one group. Wrong ones are noted, and all are left at their defaults."""
    values = {**defaults, **body.mapping(name)}
    for key in ("stop_strings", "stop_token_ids"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    known = kind.__dataclass_fields__
    found = [unknown_key(key, known) for key in values if key not in known]
    try:
        if not found:
            return kind(**values)
    except InvalidConfig as error:
        found = error.violations
    except (AttributeError, TypeError):
        found = [Violation("", "has a value of a wrong type")]
    body.violations += [Violation(f"{name}.{v.field}".rstrip("."), v.description) for v in found]
    return kind(**defaults)
