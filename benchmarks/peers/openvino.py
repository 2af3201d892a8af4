"""OpenVINO GenAI: its continuous batching, over models that optimum-intel exports.

https://openvinotoolkit.github.io/openvino.genai/docs/concepts/optimization-techniques/continuous-batching
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.worker import serve


@dataclass(frozen=True)
class Variant:
    weights: str
    """As optimum-intel calls the format."""
    arithmetic: str
    """As OpenVINO calls the type."""


VARIANTS = {
    "fp32-f32": Variant("fp32", "f32"),
    "fp16-f32": Variant("fp16", "f32"),
    "fp16-bf16": Variant("fp16", "bf16"),
    "int8-f32": Variant("int8", "f32"),
    "int8-bf16": Variant("int8", "bf16"),
    "int4-f32": Variant("int4", "f32"),
    "int4-bf16": Variant("int4", "bf16"),
}


class OpenVINO:
    version = f"OpenVINO GenAI {genai.__version__.split('-')[0]}"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        chosen = VARIANTS[variant]
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 1  # GB
        scheduler.max_num_seqs = concurrency
        scheduler.max_num_batched_tokens = max(2048, max_tokens)
        scheduler.enable_prefix_caching = False
        if chosen.arithmetic == "bf16" and not _has_bfloat16():
            raise RuntimeError("this processor has no bfloat16 arithmetic")
        properties = {
            "INFERENCE_PRECISION_HINT": chosen.arithmetic,
            "INFERENCE_NUM_THREADS": threads,
        }
        folder = _converted(exports, chosen.weights)
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        config = genai.GenerationConfig(
            max_new_tokens=max_new_tokens,
            min_new_tokens=max_new_tokens,
            ignore_eos=True,
            do_sample=False,
        )
        config.set_eos_token_id(0)  # ignored, but it must be one, and our char export has none
        config.apply_chat_template = False
        inputs = [ov.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        results = self._pipeline.generate(inputs, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]


def _has_bfloat16() -> bool:
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _converted(exports: Path, weights: str) -> Path:
    """Our export for Hugging Face in OpenVINO's format, made once by optimum-intel."""
    folder = exports / "converted" / f"openvino-{weights}"
    if not folder.exists():
        from optimum.exporters.openvino import main_export
        from optimum.intel.openvino.configuration import OVConfig, OVWeightQuantizationConfig

        if weights in ("int8", "int4"):
            bits = int(weights.removeprefix("int"))
            quantization = OVWeightQuantizationConfig(
                bits=bits,
                sym=True,
                **({"group_size": 64, "ratio": 1.0, "all_layers": True} if bits == 4 else {}),
            )
            config = OVConfig(quantization_config=quantization)
        else:
            config = OVConfig(dtype=weights)
        writing = folder.with_name(f"{folder.name}.writing")
        main_export(
            str(exports / "hf"),
            output=writing,
            task="text-generation-with-past",
            ov_config=config,
            library_name="transformers",
        )
        writing.rename(folder)
    return folder


if __name__ == "__main__":
    serve(OpenVINO())
