"""mteb with models that inf_jax opens, in Python and on mteb's own command line.

    mteb.evaluate(inf_jax.mteb.Model("out/medquad_minilm/export"), tasks)
    python -m inf_jax.mteb run -m out/medquad_minilm/export -t NevIR

The second is the command `mteb` (extra mteb) where -m may also be a directory or
package:MODULE/PATH; mteb 2.26 itself takes names of the hub only.

The vectors are those that mteb gets of an export through sentence-transformers (`mteb run -m
EXPORT`): the model's prompt, then the text as mteb joins query and instruction. A prompt that the
model's files name for a task or a type of tasks comes first, and texts that are neither queries nor
documents, as in classification, have no other. Models that encode query and instruction separately
get them as two, and so do those whose template has a place for an instruction, which is the task's
prompt where queries have none. `inf_jax.benchmark` places instructions as each benchmark does.

mteb uses a result again that it has of a model's name and revision; here a revision is a hash of
weights, settings and templates, so that another model in the same directory is scored anew.
"""

import copy
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from inf_jax.benchmarks.placement import only_prompts, prompt_of_task
from inf_jax.core.errors import UserError, main_guard
from inf_jax.io.json_files import read_json
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.retriever.loading import with_templates
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import SETTINGS_FILE
from inf_jax.retriever.similarity import unit_vectors
from inf_jax.training.run_model import is_run, open_model

_MISSING = "mteb is not installed: pip install 'inf_jax[mteb]'"


class Model:
    """An encoder in mteb's protocol (`mteb.EncoderProtocol`, mteb 2).

    Args:
      name: as of `inf_jax.load`, or the out_dir of a run.
      revision: under which mteb files its results, by default 16 hexadecimal digits of what decides
        the vectors; a hub id's newest revision is loaded in any case.
      device: ignored: JAX's devices are used.
      load_options: of `inf_jax.load`, for example mask="bidirectional"; of a run also `which`:
        newest, best or a step.

    Attributes:
      retriever: the `Retriever`.
      mteb_model_meta: `mteb.ModelMeta`; mteb files its results under name and revision.

    Raises:
      UserError: as `inf_jax.load`, or mteb is not installed.
    """

    def __init__(
        self,
        name: str | os.PathLike,
        revision: str | None = None,
        device: str | None = None,
        **load_options: Any,
    ):
        try:
            from mteb.models.model_meta import ModelMeta
        except ImportError:
            raise UserError(_MISSING) from None
        self.retriever = open_model(os.fspath(name), **load_options)
        self._prompts = _task_prompts(os.fspath(name))
        if revision is None:
            revision = _revision(self.retriever, self._prompts)
        parts = [part for part in os.fspath(name).split("/") if part not in ("", ".", "..")]
        shown = "/".join(parts[-2:]) if len(parts) > 1 else f"inf_jax/{parts[0]}"
        self.mteb_model_meta = ModelMeta.create_empty({"name": shown, "revision": revision})

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """float32[n, e] of the texts of batches, as queries or documents.

        Args:
          inputs: batches, {"text": texts, "query": ..., "instruction": ...}, of mteb's loader.
          prompt_type: "query" or "document"; None: neither.
          kwargs: of mteb, ignored: batches are formed by number of tokens.

        Raises:
          UserError: inputs that are not texts.
        """
        texts, queries, instructions = [], [], []
        for batch in inputs:
            if "text" not in batch:
                raise UserError(f"{task_metadata.name}: inputs without text are not covered")
            texts += batch["text"]
            queries += batch.get("query", batch["text"])
            instructions += batch.get("instruction", [""] * len(batch["text"]))
        kind = getattr(prompt_type, "value", prompt_type)
        retriever, prompt = self.retriever, self._prompt(task_metadata, prompt_type)
        if prompt is not None and retriever.config.queries.pooled:
            before = prompt.replace("{", "{{").replace("}", "}}")
            templates = f"{before}{{query}} {{instruction}}", f"{before}{{passage}}"
            retriever = copy.copy(retriever)
            retriever.config = with_templates(retriever.config, *templates)
        one_tower = retriever.config.towers == "shared" and retriever.config.queries.pooled
        if kind == "document" or (kind is None and one_tower):
            return retriever.encode_passages(texts)
        if not retriever.config.queries.pooled:
            return retriever.encode_queries(queries, instructions)
        if only_prompts(retriever.config.text.query_template):
            return retriever.encode_queries(texts)
        if any(instructions):
            return retriever.encode_queries(queries, instructions)
        return retriever.encode_queries(texts, prompt_of_task(task_metadata))

    def _prompt(self, task_metadata: Any, prompt_type: Any) -> str | None:
        """What stands before the texts in place of the model's own templates; None: these do."""
        from mteb.models.abs_encoder import get_prompt_name
        from mteb.types import PromptType

        kind = PromptType(prompt_type) if prompt_type else None
        name = get_prompt_name(self._prompts, task_metadata, kind)
        if name is not None and name not in ("query", "document"):
            return self._prompts[name]
        return None if kind else self._prompts.get("", "")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """float32[n, m] of vectors [n, e] and [m, e] or one of them, as the model's settings say;
        a higher one is nearer."""
        return self.retriever.similarity(np.asarray(embeddings1), np.asarray(embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """float32[n] of vectors [n, e] and [n, e], row by row."""
        first, second = np.asarray(embeddings1), np.asarray(embeddings2)
        kind = self.retriever.config.similarity
        if kind in ("euclidean", "manhattan"):
            return -np.linalg.norm(first - second, ord=2 if kind == "euclidean" else 1, axis=1)
        if kind == "cosine":
            first, second = unit_vectors(first), unit_vectors(second)
        return np.sum(first * second, axis=1)


def _task_prompts(name: str) -> dict[str, str]:
    """The prompts that a model's sentence-transformers files name, the default one as ""."""
    if is_run(name):
        return {}
    directory = resolve_model(name)
    if (directory / SETTINGS_FILE).exists():
        return {}  # an export has those of queries and documents, which are its templates
    path = directory / "config_sentence_transformers.json"
    fields = read_json(path, default={}, kind=dict)
    prompts = {key: prompt or "" for key, prompt in (fields.get("prompts") or {}).items()}
    if default := fields.get("default_prompt_name"):
        prompts[""] = prompts.get(default, "")
    model = st_files.read_model(directory)
    if model is not None and not model.include_prompt and any(prompts.values()):
        raise UserError(
            f"{directory}: its pooling has include_prompt=false, which is not covered with the "
            f"prompts of {path.name}; use sentence-transformers"
        )
    return prompts


def _revision(retriever: Retriever, prompts: Mapping[str, str]) -> str:
    """16 hexadecimal digits of what decides a model's vectors."""
    text = dataclasses.asdict(retriever.config.text)
    decides = [retriever.identity, text, str(retriever.dtype), dict(prompts)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def main(argv: list[str]) -> None:
    """Runs mteb's command line, given without the program's name.

    Raises:
      UserError: mteb is not installed, or as `inf_jax.load`.
      SystemExit: of mteb.
    """
    try:
        from mteb.cli import main as mteb_main
        from mteb.models.model_implementations import MODEL_REGISTRY
        from mteb.models.model_meta import ModelMeta
    except ImportError:
        raise UserError(_MISSING) from None
    arguments = list(argv)
    for place, argument in enumerate(argv):
        flag, equals, name = argument.partition("=")
        if flag not in ("-m", "--model"):
            continue
        if not equals:
            name, place = "".join(argv[place + 1 : place + 2]), place + 1
        if name.startswith("package:") or os.path.isdir(name):
            name = name if name.startswith("package:") else os.path.abspath(name)
            arguments[place] = f"{flag}={name}" if equals else name
            # opened here, since mteb looks for results by the revision before it loads a model
            model = Model(name)
            overwrites = {"name": name, "revision": model.mteb_model_meta.revision}
            overwrites["loader"] = lambda *args, model=model, **kwargs: model
            MODEL_REGISTRY[name] = ModelMeta.create_empty(overwrites)
    sys.argv = ["mteb", *arguments]
    mteb_main()


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
