"""Prompts for bases whose text encoder is a Qwen3 language model, in its chat template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

log = logging.getLogger(__name__)


def chat(tokenizer: Any, prompt: str, thinking: bool) -> str:
    """A prompt as a user's turn; `thinking` as the base's pipeline sets the template's option."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    return text


def words_lost(tokenizer: Any, prompt: str, length: int, thinking: bool) -> str | None:
    """One line about the end of a prompt of more than `length` tokens; None for any other."""
    ids = tokenizer(chat(tokenizer, prompt, thinking)).input_ids
    if len(ids) <= length:
        return None
    read = f"prompt of {len(ids)} tokens with the chat template, the base reads {length}"
    return f"{read}; not seen by it: {tokenizer.decode(ids[length:])!r}"


def tokenize(
    tokenizer: Any, prompts: Sequence[str], length: int, thinking: bool
) -> list[torch.Tensor]:
    """Token ids and the attention mask, each (n, length); warns about words past the last token."""
    for prompt in dict.fromkeys(prompts):
        line = words_lost(tokenizer, prompt, length, thinking)
        if line:
            log.warning("%s", line)
    texts = [chat(tokenizer, prompt, thinking) for prompt in prompts]
    tokens = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return [tokens.input_ids, tokens.attention_mask]
