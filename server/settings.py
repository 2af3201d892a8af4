"""Every knob of the server: name, type, default, unit and range in one place.

Read once at start, from `NANOGPT_*` environment variables and `--key=value` arguments, which win.
Everything below gets plain values.

    NANOGPT_DATA_DIR=/data python -m server --grpc_address=0.0.0.0:50051 --load_models=gpt2
"""

import difflib
import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nanogpt.inference.precision import Precision

PREFIX = "NANOGPT_"


class BadSettings(ValueError):
    """Settings that cannot be used; the text names every variable and what is allowed there."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; IPv6 hosts stand in brackets. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port with a port in [0, 65535], 0 picks a free one")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on the host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _checked_address(address: str) -> str:
    split_address(address)
    return address


def _split_names(value: Any) -> Any:
    return (
        [name.strip() for name in value.split(",") if name.strip()]
        if isinstance(value, str)
        else value
    )


def _checked_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+/?\S*", url):
        raise ValueError("must be a URL that begins with http:// or https://")
    return url


Url = Annotated[str, AfterValidator(_checked_url)]
Address = Annotated[str, AfterValidator(_checked_address)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]


class Settings(BaseSettings):
    """What an operator may decide. Immutable."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        env_ignore_empty=True,
        extra="forbid",
        protected_namespaces=(),
    )

    data_dir: Path = Field(
        default=Path("data"),
        description="Folder of datasets, models, runs and the job database; a local disk.",
    )
    grpc_address: Address = Field(
        default="127.0.0.1:50051", description="host:port of the gRPC server; port 0 picks one."
    )
    http_address: Address = Field(
        default="127.0.0.1:9464",
        description="host:port of the dashboard, /metrics and /healthz; port 0 picks one.",
    )
    http_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="What the dashboard asks for, at least 16 characters; needed unless "
        "http_address is on loopback. /metrics and /healthz ask for nothing.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="Where models run."
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads of models; unset is torch's choice."
    )
    precision: Precision = Field(default="float32", description="How weights are held in memory.")
    batch_invariant: Literal["auto", "on"] = Field(
        default="auto",
        description="Whether logits are the same whatever else is in the batch: auto is with "
        "native kernels, which pay nothing for it; on is also with PyTorch, which takes 10 to 60 % "
        "longer.",
    )
    kernels: Literal["auto", "torch", "native"] = Field(
        default="auto",
        description="What models run on: auto is PyTorch, and on a CPU native kernels as soon as "
        "they are compiled; native does not start without them.",
    )
    load_models: Names = Field(
        default=(),
        description="Models to load at start and keep in memory, separated by commas.",
    )
    model_memory_bytes: int | None = Field(
        default=None,
        ge=1 << 20,
        description="Bytes that loaded models may take together; unset is half of the memory of "
        "the GPU, else of the machine or the container.",
    )
    num_slots: int = Field(
        default=32, ge=1, le=1024, description="Sequences that a model generates at a time."
    )
    max_waiting_requests: int = Field(
        default=64,
        ge=0,
        le=100_000,
        description="Requests that wait for a model; more are refused.",
    )
    max_waiting_tokens: int = Field(
        default=1 << 17,
        ge=1,
        le=1 << 30,
        description="Prompt tokens that wait for a model; more requests are refused meanwhile.",
    )
    trainer_nice: int = Field(
        default=10,
        ge=0,
        le=19,
        description="How far trainers yield processors to generation; 0 is not at all.",
    )
    ray_address: Url | None = Field(
        default=None,
        description="URL of the dashboard of a Ray cluster, for jobs with launcher ray.",
    )
    ray_token: SecretStr | None = Field(
        default=None, description="Token of the Ray cluster, if it asks for one."
    )
    max_queued_jobs: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Jobs that wait for their turn or are paused; more are refused.",
    )
    max_running_jobs: int = Field(
        default=1, ge=1, le=1000, description="Jobs that train at a time, on the same device."
    )
    max_crashes: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="Crashes in a row, without a new checkpoint between them, that a job survives.",
    )
    max_backoff_seconds: float = Field(
        default=60,
        ge=0,
        le=3600,
        description="Longest pause before a crashed trainer starts again; doubles from 1 second.",
    )
    max_upload_bytes: int = Field(
        default=1 << 30,
        ge=1,
        description="Most bytes that CreateDataset takes, and that they may unpack to.",
    )
    max_datasets_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Bytes that all datasets may take together; unset is what the disk holds.",
    )
    max_deadline_seconds: float = Field(
        default=600,
        gt=0,
        le=86_400,
        description="Longest a call may take, in seconds, unless it follows a job or health.",
    )
    drain_seconds: float = Field(
        default=20,
        ge=0,
        le=3600,
        description="Time that running calls get to finish when the server stops, in seconds.",
    )
    reflection: Literal["auto", "on", "off"] = Field(
        default="auto", description="Whether clients may ask for the API; auto is on for loopback."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages that are logged."
    )


def load_settings(arguments: Sequence[str] = ()) -> Settings:
    """Settings of the environment, overridden by `--key=value` arguments. Raises BadSettings.

    An empty value, in either place, is the default.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not argument.startswith("--") or not equals:
            raise BadSettings(f"{argument}: arguments are written --key=value; see --help")
        if key not in Settings.model_fields:
            raise BadSettings(f"--{key}: no such setting; {_nearest(key)}")
        values[key] = value or Settings.model_fields[key].default
    try:
        return Settings(**values)
    except ValidationError as error:
        raise BadSettings(
            "\n".join(_explain(problem, values) for problem in error.errors())
        ) from None


def help_text() -> str:
    """Every setting with its variable, default and explanation."""
    lines = [
        "usage: python -m server [--key=value ...]",
        "",
        f"Each setting is also an environment variable, {PREFIX}KEY; arguments win.",
        "",
    ]
    for name, field in Settings.model_fields.items():
        lines.append(f"  --{name}={_shown(field.default)}")
        lines.append(f"      {field.description}{_allowed(field)}")
    return "\n".join(lines)


def _nearest(key: str) -> str:
    nearest = difflib.get_close_matches(key, Settings.model_fields, n=1)
    return f"did you mean --{nearest[0]}?" if nearest else "see --help"


def _explain(problem: Any, given: dict[str, Any]) -> str:
    """One sentence about one bad value, naming the argument or variable it came from."""
    key = str(problem["loc"][0])
    source = f"--{key}" if key in given else f"{PREFIX}{key.upper()}"
    text = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    if "SecretStr" in str(Settings.model_fields[key].annotation):
        return f"{source}: {text}"  # and not what was given
    return f"{source}: {text}, got {problem['input']!r}"


def _shown(default: Any) -> str:
    if default is None:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _allowed(field: FieldInfo) -> str:
    """The choices or the range of a setting, for people."""
    if get_origin(field.annotation) is Literal:
        return f" One of {', '.join(get_args(field.annotation))}."
    signs = (("ge", "at least"), ("gt", "above"), ("le", "at most"))
    limits = [
        f"{words} {getattr(bound, sign)}"
        for sign, words in signs
        for bound in field.metadata
        if hasattr(bound, sign)
    ]
    return f" Must be {' and '.join(limits)}." if limits else ""
