"""Weights of other systems, in and out. Weights only: no code in a file is ever run.

hugging_face        folders of transformers' GPT2LMHeadModel
nanogpt_checkpoint  nanoGPT's ckpt.pt
gguf                llama.cpp's single file, out only
gpt2_vocabulary     GPT-2's tokens and merges as text, which the others' tokenizers read
weights             names and shapes that a GPT-2's weights must have
"""
