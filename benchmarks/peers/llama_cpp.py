"""llama.cpp through llama-cpp-python: its own batches of sequences, by the low-level interface.

The high-level one decodes one sequence at a time; this is what llama-batched-bench does.
https://github.com/ggml-org/llama.cpp/blob/master/tools/batched-bench/batched-bench.cpp
"""

import ctypes
from pathlib import Path

import llama_cpp as llama
import numpy as np

from benchmarks.worker import serve

FILE_TYPES = {
    "f16": llama.LLAMA_FTYPE_MOSTLY_F16,
    "bf16": llama.LLAMA_FTYPE_MOSTLY_BF16,
    "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
}
BATCH_TOKENS = 2048


class LlamaCpp:
    version = f"llama.cpp (llama-cpp-python {llama.__version__})"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        llama.llama_backend_init()
        (source,) = (exports / "gguf").glob("*.gguf")
        path = source if variant == "f32" else _quantized(source, exports, variant)
        self._model = llama.llama_load_model_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path.name}")
        params = llama.llama_context_default_params()
        params.n_ctx = concurrency * (max_tokens + 32)
        params.n_batch, params.n_ubatch = BATCH_TOKENS, 512
        params.n_seq_max = concurrency
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self._context = llama.llama_new_context_with_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        token_ids: list[list[int]] = [[] for _ in prompts]
        newest: list[tuple[int, int]] = []  # row of logits, sequence
        for sequence, prompt in enumerate(prompts):
            if self._batch.n_tokens + len(prompt) > BATCH_TOKENS:
                self._decode(newest, token_ids)
            for position, token in enumerate(prompt):
                last = position == len(prompt) - 1
                if last:
                    newest.append((self._batch.n_tokens, sequence))
                self._add(token, position, sequence, last)
        self._decode(newest, token_ids)
        for step in range(max_new_tokens - 1):
            for sequence, prompt in enumerate(prompts):
                newest.append((self._batch.n_tokens, sequence))
                self._add(token_ids[sequence][-1], len(prompt) + step, sequence, True)
            self._decode(newest, token_ids)
        return token_ids

    def _add(self, token: int, position: int, sequence: int, wants_logits: bool) -> None:
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[index] = wants_logits
        batch.n_tokens += 1

    def _decode(self, newest: list[tuple[int, int]], token_ids: list[list[int]]) -> None:
        """Computes the batch, takes the likeliest token of each of `newest`, empties both."""
        if code := llama.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode returned {code}")
        for row, sequence in newest:
            logits = llama.llama_get_logits_ith(self._context, row)
            array = np.ctypeslib.as_array(logits, shape=(self._vocab_size,))
            token_ids[sequence].append(int(array.argmax()))
        self._batch.n_tokens = 0
        newest.clear()


def _quantized(source: Path, exports: Path, variant: str) -> Path:
    """Our export in another type, made once by llama.cpp itself, all matrices of one type."""
    path = exports / "converted" / f"{variant}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.with_suffix(".writing")
        params = llama.llama_model_quantize_default_params()
        params.ftype = FILE_TYPES[variant]
        params.pure = True
        code = llama.llama_model_quantize(
            str(source).encode(), str(writing).encode(), ctypes.byref(params)
        )
        if code:
            raise RuntimeError(f"llama_model_quantize returned {code}")
        writing.rename(path)
    return path


if __name__ == "__main__":
    serve(LlamaCpp())
