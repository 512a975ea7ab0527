"""Instructed queries of an exported model with PyTorch and transformers alone.

This file is copied into every export whose queries are encoded by instruction-query attention; it
needs nothing of inf_jax.

    encoder = InstructedEncoder("path/to/this/directory")
    vectors = encoder.encode(["Glaucoma"], ["What are the treatments for it?"])
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers


class InstructedEncoder:
    """Encodes queries and their instructions apart and joins them by attention.

    Args:
      directory: the export; its `inf_jax.json` has the limit and the tower.
      device: where the model runs, "cpu" or "cuda" for example.
    """

    def __init__(self, directory: str | Path, *, device: str = "cpu"):
        directory = Path(directory)
        settings = json.loads((directory / "inf_jax.json").read_text(encoding="utf-8"))
        folder = directory / "query" if settings["towers"] == "separate" else directory
        self.limit: int = settings["text"]["max_query_tokens"]
        self.normalise: bool = settings["normalise"]
        here = {"local_files_only": True}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **here)
        # by its own class: AutoModel would take T5's decoder along
        name = transformers.AutoConfig.from_pretrained(folder, **here).architectures[0]
        kind = getattr(transformers, name)
        model = kind.from_pretrained(folder, dtype=torch.float32, **here)
        self.model = model.eval().to(device)

    @torch.inference_mode()
    def encode(
        self, queries: Sequence[str], instructions: Sequence[str], *, batch_size: int = 32
    ) -> np.ndarray:
        """float32[n, d] of n queries with an instruction each; "" is a query that has none."""
        if len(queries) != len(instructions):
            raise ValueError(f"{len(queries)} queries but {len(instructions)} instructions")
        vectors = []
        for start in range(0, len(queries), batch_size):
            instruction, instruction_mask = self._states(instructions[start : start + batch_size])
            query, query_mask = self._states(queries[start : start + batch_size])
            found = attend(instruction, query, instruction_mask, query_mask)
            if self.normalise:
                found = torch.nn.functional.normalize(found, dim=-1)
            vectors.append(found.float().cpu().numpy())
        width = self.model.config.hidden_size
        return np.concatenate(vectors) if vectors else np.zeros((0, width), np.float32)

    def _states(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states [n, t, d] of texts and their mask bool[n, t]; special tokens are tokens."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(self.model.device)
        return self.model(**batch).last_hidden_state, batch["attention_mask"].bool()


def attend(
    instruction: torch.Tensor,
    query: torch.Tensor,
    instruction_mask: torch.Tensor,
    query_mask: torch.Tensor,
) -> torch.Tensor:
    """The mean over the instruction's tokens of softmax(I Q^T / sqrt(d)) Q.

    Args:
      instruction, query: token states [n, i, d] and [n, q, d].
      instruction_mask, query_mask: bool[n, i] and [n, q], True at the texts' tokens.

    Returns:
      [n, d], not normalised.
    """
    scores = instruction @ query.transpose(1, 2) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~query_mask[:, None, :], -torch.inf).softmax(-1)
    attended = (weights @ query) * instruction_mask[:, :, None]
    return attended.sum(1) / instruction_mask.sum(1, keepdim=True)
