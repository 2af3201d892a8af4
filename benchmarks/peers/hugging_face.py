"""transformers: GPT2LMHeadModel.generate with its own cache.

https://huggingface.co/docs/transformers/main_classes/text_generation
"""

from pathlib import Path

import torch
import transformers

from benchmarks.worker import serve


class HuggingFace:
    version = f"transformers {transformers.__version__}"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[variant]
        self._model = transformers.GPT2LMHeadModel.from_pretrained(exports / "hf", dtype=dtype)
        self._model.eval()

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=max_new_tokens,
                max_new_tokens=max_new_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        return output[:, ids.shape[1] :].tolist()


if __name__ == "__main__":
    serve(HuggingFace())
