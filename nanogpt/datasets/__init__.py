"""Text into token files, and token files into arrays: the formats of nanoGPT, and some corpora."""
