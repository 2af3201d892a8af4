"""Which systems inference is measured beside, where they are installed, in which precisions.

They live in environments of their own below build/peers (`make bench-peers`): their packages
contradict ours, and vLLM's those of the others.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("float32", "bfloat16", "int8", "int4")
"""Highest first. float16 counts as bfloat16: both have 16 bits."""

ENVIRONMENTS = Path("build/peers")


@dataclass(frozen=True, slots=True)
class Contender:
    """One system in one precision."""

    name: str
    module: str
    python: Path
    variant: str
    """The precision by the system's own name."""
    precision: str
    """One of PRECISIONS."""
    package: str = ""
    """Folder of the system among the packages of its Python; empty for ours."""

    @property
    def is_installed(self) -> bool:
        packages = f"lib/python3*/site-packages/{self.package}"
        return not self.package or any(self.python.parent.parent.glob(packages))

    @property
    def command(self) -> list[str]:
        return [str(self.python), "-m", f"benchmarks.peers.{self.module}"]


def at_least(precision: str) -> tuple[str, ...]:
    """The precisions that are as high or higher."""
    return PRECISIONS[: PRECISIONS.index(precision) + 1]


def ours(precision: str) -> Contender:
    return Contender("ours", "ours", Path(sys.executable), precision, precision)


def ours_over_grpc(precision: str) -> Contender:
    return Contender("ours over gRPC", "ours_over_grpc", Path(sys.executable), precision, precision)


def _peer(
    name: str, module: str, package: str, variants: dict[str, str], environment: str = "bench"
) -> tuple[Contender, ...]:
    python = ENVIRONMENTS / environment / "bin" / "python"
    return tuple(
        Contender(f"{name} {variant}", module, python, variant, precision, package)
        for variant, precision in variants.items()
    )


PEERS: tuple[Contender, ...] = (
    *_peer(
        "OpenVINO",
        "openvino",
        "openvino_genai",
        {
            "fp32-f32": "float32",
            "fp16-f32": "bfloat16",
            "fp16-bf16": "bfloat16",
            "int8-f32": "int8",
            "int8-bf16": "int8",
            "int4-f32": "int4",
            "int4-bf16": "int4",
        },
    ),
    *_peer(
        "llama.cpp",
        "llama_cpp",
        "llama_cpp",
        {"f32": "float32", "bf16": "bfloat16", "f16": "bfloat16", "q8_0": "int8", "q4_0": "int4"},
    ),
    *_peer(
        "CTranslate2",
        "ctranslate2",
        "ctranslate2",
        {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8"},
    ),
    *_peer(
        "vLLM", "vllm", "vllm", {"float32": "float32", "bfloat16": "bfloat16"}, environment="vllm"
    ),
    *_peer(
        "transformers",
        "hugging_face",
        "transformers",
        {"float32": "float32", "bfloat16": "bfloat16"},
    ),
)
