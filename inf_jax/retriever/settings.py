"""What turns a model directory into a retriever: the contents of `inf_jax.json`."""

import dataclasses
from pathlib import Path

from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json
from inf_jax.models.encoder import EncoderOptions
from inf_jax.models.pooling import POOLINGS
from inf_jax.text.templates import TextConfig

SETTINGS_FILE = "inf_jax.json"
FORMAT = 3  # of SETTINGS_FILE; 1 knew no query_encoder, 2 no projection
QUERY_ENCODERS = ("joint", "attention")


@dataclasses.dataclass(frozen=True)
class RetrieverConfig:
    """See the module.

    Attributes:
      towers: "shared", or "separate" for one encoder for queries and one for passages.
      pooling: mean, cls, last or weighted_mean.
      projection: width of the linear layer after pooling; 0 is none.
      projection_bias: whether it has a bias.
      normalise: unit-length vectors.
      dims: how many of a vector's first entries it was trained to be used by (Matryoshka, Kusupati
        et al. 2022, arXiv 2205.13147); empty is all alone.
      text: templates and limits.
      query_encoder: "joint", query and instruction are one text; or "attention", they are encoded
        apart (`models.instruct`), each up to `max_query_tokens`, and `pooling` is for passages.
        An empty instruction, or query, is then a text of special tokens alone.
    """

    towers: str = "shared"
    pooling: str = "mean"
    normalise: bool = True
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    query_encoder: str = "joint"
    projection: int = 0
    projection_bias: bool = False
    dims: tuple[int, ...] = ()

    def options(self, **how) -> EncoderOptions:
        """Of the encoder; `how` are those that change no vector."""
        return EncoderOptions(
            pooling=self.pooling,
            projection=self.projection,
            projection_bias=self.projection_bias,
            normalise=self.normalise,
            **how,
        )

    def folders(self, directory: Path) -> dict[str, Path]:
        """The model directory of each tower, keyed like the parameters."""
        if self.towers == "shared":
            return {"shared": directory}
        return {role: directory / role for role in ("query", "passage")}


def read_settings(directory: Path) -> RetrieverConfig:
    """The RetrieverConfig of `<directory>/inf_jax.json`; UserError where it is not one of ours."""
    path = directory / SETTINGS_FILE
    fields = read_json(path)
    if fields.get("format") not in range(1, FORMAT + 1):
        raise UserError(
            f"{path}: format {fields.get('format')!r}, this version reads 1 to {FORMAT}: "
            "export again, or take the inf_jax version that wrote it"
        )
    try:
        towers, pooling, normalise = (fields[k] for k in ("towers", "pooling", "normalise"))
        query_encoder = "joint" if fields["format"] == 1 else fields["query_encoder"]
        text = TextConfig(**fields["text"])
        old = {"projection": 0, "projection_bias": False, "dims": ()}
        head = {name: old[name] if fields["format"] < 3 else fields[name] for name in old}
        head["dims"] = tuple(head["dims"])
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    if towers not in ("shared", "separate") or pooling not in POOLINGS:
        raise UserError(f"{path}: towers={towers!r} or pooling={pooling!r} is not known here")
    if query_encoder not in QUERY_ENCODERS:
        raise UserError(f"{path}: query_encoder={query_encoder!r} is not one of {QUERY_ENCODERS}")
    return RetrieverConfig(towers, pooling, bool(normalise), text, query_encoder, **head)
