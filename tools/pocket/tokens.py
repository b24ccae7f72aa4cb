"""The small CLIP tokenizer: every word that the pocket models know is one token, `sks` too."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from .captions import known_words

LENGTH = 32


def build_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer in which every word of the captions is one token; any text can be encoded.

    Byte-pair merges are learnt from that word list until every word is whole. Done here and not by
    `tokenizers`' trainer, whose order among equally frequent pairs differs from run to run: a
    resumed training needs the same ids again.
    """
    words = known_words()
    split = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in split for pair in pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in split:
            for i in range(len(word) - 2, -1, -1):
                if tuple(word[i : i + 2]) == best:
                    word[i : i + 2] = ["".join(best)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [a + "</w>" for a in alphabet] + [a + b for a, b in merges]
    unique = dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"])
    vocab = {token: i for i, token in enumerate(unique)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids, padded and cut to (len(texts), LENGTH)."""
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    return tokenizer(texts, return_tensors="pt", **options).input_ids
