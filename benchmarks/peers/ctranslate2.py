"""CTranslate2: static batches, over models that its own converter makes of our export.

https://opennmt.net/CTranslate2/guides/transformers.html
"""

import json
from pathlib import Path

import ctranslate2

from benchmarks.worker import serve


class CTranslate2:
    version = f"CTranslate2 {ctranslate2.__version__}"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        folder = _converted(exports)
        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type=variant, inter_threads=1, intra_threads=threads
        )
        self._concurrency = concurrency
        self._tokens: list[str] = json.loads((folder / "vocabulary.json").read_text())

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        results = self._generator.generate_batch(
            [[self._tokens[token] for token in prompt] for prompt in prompts],
            max_batch_size=self._concurrency,
            beam_size=1,
            sampling_topk=1,
            max_length=max_new_tokens,
            min_length=max_new_tokens,
            include_prompt_in_result=False,
            end_token=[],
        )
        return [result.sequences_ids[0] for result in results]


def _converted(exports: Path) -> Path:
    """Our export for Hugging Face in CTranslate2's format; types are chosen when it is loaded."""
    folder = exports / "converted" / "ctranslate2"
    if not folder.exists():
        from ctranslate2.converters import TransformersConverter

        writing = folder.with_name(f"{folder.name}.writing")
        TransformersConverter(str(exports / "hf")).convert(str(writing), force=True)
        writing.rename(folder)
    return folder


if __name__ == "__main__":
    serve(CTranslate2())
