"""Plain arguments in, request messages out. Checks names and types; the server checks ranges."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message

from protos.nanogpt.v1.datasets_pb2 import CreateDatasetRequest, DatasetSpec
from protos.nanogpt.v1.inference_pb2 import (
    GenerateRequest,
    ResponseOptions,
    SamplingParams,
    ScoreRequest,
    StoppingParams,
)
from protos.nanogpt.v1.training_pb2 import TrainConfig, TrainRequest

M = TypeVar("M", bound=Message)

ConfigValue = bool | int | float | str | Sequence[str]
"""Value of a hyperparameter."""

Text = Path | bytes | Iterable[bytes]
"""Text to upload: a file, all of its bytes, or its bytes in pieces."""

CHUNK_BYTES = 1 << 20
"""Most text that one message of an upload may carry."""


class GenerateOptions(TypedDict, total=False):
    """How to continue a prompt. Ranges and defaults: protos/nanogpt/v1/inference.proto.

    None is the same as leaving the option out.
    """

    model: str
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float]
    seed: int | None
    max_new_tokens: int | None
    stop_strings: Sequence[str]
    stop_token_ids: Sequence[int]
    min_new_tokens: int | None
    ignore_end_of_text: bool
    include_stop_string: bool
    context_overflow: str  # "roll", "stop" or "exact"
    logprobs: bool
    top_logprobs: int
    prompt_logprobs: int | None
    echo: bool
    priority: int | None
    use_prefix_cache: bool | None
    max_draft_tokens: int | None


def generate_request(
    prompt: str | Sequence[int], num_samples: int, options: GenerateOptions
) -> GenerateRequest:
    """A request to continue text or token ids. TypeError for an option that does not exist."""
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"generate has no option {', '.join(sorted(unknown))}")
    values: dict[str, Any] = dict(options)
    if values.get("context_overflow") is not None:
        values["context_overflow"] = f"CONTEXT_OVERFLOW_{values['context_overflow'].upper()}"
    request = GenerateRequest(
        model=options.get("model", ""),
        sampling=_part(SamplingParams, values),
        stopping=_part(StoppingParams, values),
        response=_part(ResponseOptions, values),
        num_samples=num_samples,
        priority=options.get("priority"),
        use_prefix_cache=options.get("use_prefix_cache"),
        max_draft_tokens=options.get("max_draft_tokens"),
    )
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.prompt_token_ids.ids.extend(prompt)
    return request


def _part(kind: type[M], values: Mapping[str, Any]) -> M:
    """A message of those values that are fields of its kind."""
    return kind(**{name: values[name] for name in kind.DESCRIPTOR.fields_by_name if name in values})


def score_request(text: str | Sequence[int], model: str, top_logprobs: int | None) -> ScoreRequest:
    """A request to score text or token ids."""
    request = ScoreRequest(model=model, top_logprobs=top_logprobs)
    if isinstance(text, str):
        request.text = text
    else:
        request.token_ids.ids.extend(text)
    return request


def train_request(
    dataset: str,
    model: str,
    preset: str,
    request_id: str,
    priority: int | None,
    config: Mapping[str, ConfigValue],
) -> TrainRequest:
    """A request to train; keys of `config` are fields of TrainConfig, else ValueError.

    Without a `request_id` it gets a random one, so that sending it twice starts one job.
    """
    values: dict[str, Any] = dict(config)
    return TrainRequest(
        dataset=dataset,
        model=model,
        preset=preset,
        request_id=request_id or str(uuid.uuid4()),
        priority=priority,
        config=TrainConfig(**values),
    )


def dataset_spec(
    name: str,
    tokenizer: str,
    val_ratio: float | None,
    encoding: str,
    shipped: str,
    format: str,
    text_field: str,
    max_documents: int | None,
) -> DatasetSpec:
    """What to make; `tokenizer` and `format` are words such as "char" and "jsonl", or empty."""
    return DatasetSpec(
        name=name,
        tokenizer=f"TOKENIZER_{tokenizer.upper() or 'UNSPECIFIED'}",
        val_ratio=val_ratio,
        encoding=encoding,
        shipped=shipped,
        format=f"FORMAT_{format.upper() or 'UNSPECIFIED'}",
        text_field=text_field,
        max_documents=max_documents,
    )


class Upload:
    """Messages of one upload. `error` is what reading the text raised, which gRPC would hide."""

    def __init__(self, spec: DatasetSpec, text: Text | None) -> None:
        self._spec, self._text = spec, text
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[CreateDatasetRequest]:
        yield CreateDatasetRequest(spec=self._spec)
        try:
            for chunk in _chunks(self._text):
                yield CreateDatasetRequest(text=chunk)
        except Exception as error:
            self.error = error
            raise


def _chunks(text: Text | None) -> Iterator[bytes]:
    """The text in pieces that fit into a message."""
    if text is None:
        return
    if isinstance(text, Path):
        with text.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        return
    for piece in [text] if isinstance(text, bytes) else text:
        for start in range(0, len(piece), CHUNK_BYTES):
            yield piece[start : start + CHUNK_BYTES]
