"""Encodes instructed queries of this exported model with PyTorch and transformers only.

The export uses instruction-query attention, which no standard module of those libraries
implements. This file is copied into the export and does not need inf_jax.

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
    """Encodes queries and their instructions separately and combines them by attention.

    Args:
      directory: the export, with its `inf_jax.json`.
      device: where the model runs, for example "cpu" or "cuda".
    """

    def __init__(self, directory: str | Path, *, device: str = "cpu"):
        directory = Path(directory)
        settings = json.loads((directory / "inf_jax.json").read_text(encoding="utf-8"))
        folder = directory / "query" if settings["towers"] == "separate" else directory
        self.limit: int = settings["text"]["max_query_tokens"]
        self.normalise: bool = settings["normalise"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # The class by its name: AutoModel would also load T5's decoder.
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        model_class = getattr(transformers, config.architectures[0])
        model = model_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self.model = model.eval().to(device)

    @torch.inference_mode()
    def encode(
        self, queries: Sequence[str], instructions: Sequence[str], *, batch_size: int = 32
    ) -> np.ndarray:
        """float32[n, d] of n queries with one instruction each; "" is no instruction."""
        if len(queries) != len(instructions):
            raise ValueError(f"{len(queries)} queries but {len(instructions)} instructions")
        vectors = []
        for start in range(0, len(queries), batch_size):
            instruction, instruction_mask = self._states(instructions[start : start + batch_size])
            query, query_mask = self._states(queries[start : start + batch_size])
            attended = attend(instruction, query, instruction_mask, query_mask)
            if self.normalise:
                attended = torch.nn.functional.normalize(attended, dim=-1)
            vectors.append(attended.float().cpu().numpy())
        width = self.model.config.hidden_size
        return np.concatenate(vectors) if vectors else np.zeros((0, width), np.float32)

    def _states(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states [n, t, d] of texts, special tokens included, and their mask bool[n, t]."""
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
      instruction, query: token states I [n, i, d] and Q [n, q, d].
      instruction_mask, query_mask: bool[n, i] and bool[n, q], True at the tokens of the texts.

    Returns:
      [n, d], not normalised.
    """
    scores = instruction @ query.transpose(1, 2) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~query_mask[:, None, :], -torch.inf).softmax(-1)
    attended = (weights @ query) * instruction_mask[:, :, None]
    return attended.sum(1) / instruction_mask.sum(1, keepdim=True)
