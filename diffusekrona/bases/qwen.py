"""Prompts for bases whose text encoder is a Qwen3 language model, in its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .base import end_not_read


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
    return end_not_read(tokenizer, ids, length, 0, "tokens with the chat template")


def token_ids(
    tokenizer: Any, prompts: Sequence[str], length: int, thinking: bool
) -> list[torch.Tensor]:
    """Token ids and the attention mask, each (n, length)."""
    texts = [chat(tokenizer, prompt, thinking) for prompt in prompts]
    tokens = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return [tokens.input_ids, tokens.attention_mask]
