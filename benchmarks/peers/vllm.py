"""vLLM for CPUs, in process, compiled.

https://docs.vllm.ai/en/latest/getting_started/installation/cpu.html
"""

import os
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"

import vllm

from benchmarks.worker import serve


class VLLM:
    version = f"vLLM {vllm.__version__}"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        self._model = vllm.LLM(
            str(exports / "hf"),
            skip_tokenizer_init=True,
            dtype=variant,
            max_num_seqs=concurrency,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            min_tokens=0,
            ignore_eos=True,
            detokenize=False,
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = self._model.generate(asked, sampling, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]


if __name__ == "__main__":
    serve(VLLM())
