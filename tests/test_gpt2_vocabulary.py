"""GPT-2's vocabulary as text is byte for byte what OpenAI published.

The sums are those of https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py
"""

import hashlib
import json

from nanogpt.interop.gpt2_vocabulary import END_OF_TEXT, merges, vocabulary
from nanogpt.tokenizer import GPT2Tokenizer

VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


def test_merges_are_the_published_ones() -> None:
    text = "\n".join(["#version: 0.2", *map(" ".join, merges()), ""])
    assert hashlib.sha256(text.encode()).hexdigest() == VOCAB_BPE_SHA256


def test_tokens_are_the_published_ones() -> None:
    text = json.dumps({token: i for i, token in enumerate(vocabulary())})
    assert hashlib.sha256(text.encode()).hexdigest() == ENCODER_JSON_SHA256
    assert vocabulary()[GPT2Tokenizer.end_of_text_id] == END_OF_TEXT
