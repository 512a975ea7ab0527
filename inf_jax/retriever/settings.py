"""Settings of a retriever, stored as `inf_jax.json` in an exported model."""

import dataclasses
from pathlib import Path

from inf_jax.core import choices
from inf_jax.core.errors import UserError, first_line
from inf_jax.core.query_encoders import QueryEncoder, query_encoder
from inf_jax.io.json_files import read_json
from inf_jax.models.encoder import EncoderOptions
from inf_jax.text.templates import TextConfig

SETTINGS_FILE = "inf_jax.json"
# Version of SETTINGS_FILE; 2 added query_encoder, 3 projection and dims, 4 truncate_dim.
SETTINGS_FORMAT = 4
_ADDED_IN_3 = {"projection": 0, "projection_bias": False, "dims": ()}
_ADDED_IN_4 = {"truncate_dim": 0, "similarity": "cosine"}


@dataclasses.dataclass(frozen=True)
class RetrieverConfig:
    """How a model's texts become vectors; everything but the weights and the encoder's shape.

    Attributes:
      towers: "shared", or "separate": one encoder for queries and one for passages.
      pooling: mean, cls, last or weighted_mean.
      normalise: scale vectors to unit length.
      text: templates and token limits.
      query_encoder: "joint": query and instruction are one text. "attention": they are encoded
        separately, up to `max_query_tokens` each, and combined by `models.instruction_attention`;
        `pooling` then applies to passages only, and an empty text is its special tokens.
      projection: width of the linear layer after pooling; 0: none.
      projection_bias: whether that layer has a bias.
      dims: numbers of first entries that the vectors were trained to be truncated to (Matryoshka,
        Kusupati et al. 2022, arXiv 2205.13147); (): all entries only.
      truncate_dim: vectors are cut after so many entries unless a call says otherwise; 0: not.
      similarity: how the vectors are meant to be compared: cosine, dot, euclidean or manhattan.
    """

    towers: str = "shared"
    pooling: str = "mean"
    normalise: bool = True
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    query_encoder: str = "joint"
    projection: int = 0
    projection_bias: bool = False
    dims: tuple[int, ...] = ()
    truncate_dim: int = 0
    similarity: str = "cosine"

    @property
    def queries(self) -> QueryEncoder:
        """What differs between the query encoders."""
        return query_encoder(self.query_encoder)

    @property
    def unit_after_cut(self) -> bool:
        """Whether cut vectors are scaled to unit length again. Only cosines stay what they are, so
        that vectors for another similarity keep the lengths that the cut gives them."""
        return self.normalise and self.similarity == "cosine"

    def encoder_options(self, **execution) -> EncoderOptions:
        """Options of the encoder; `execution` are those that do not change the vectors."""
        return EncoderOptions(
            pooling=self.pooling,
            projection=self.projection,
            projection_bias=self.projection_bias,
            normalise=self.normalise,
            **execution,
        )

    def folders(self, directory: Path) -> dict[str, Path]:
        """The model directory of each tower, keyed like the parameters."""
        if self.towers == "shared":
            return {"shared": directory}
        return {role: directory / role for role in ("query", "passage")}


def read_settings(directory: Path) -> RetrieverConfig:
    """Reads `<directory>/inf_jax.json`; raises UserError if it is damaged or of a newer format."""
    path = directory / SETTINGS_FILE
    fields = read_json(path, kind=dict, remedy="export again")
    if fields.get("format") not in range(1, SETTINGS_FORMAT + 1):
        raise UserError(
            f"{path}: format {fields.get('format')!r}, this version reads 1 to {SETTINGS_FORMAT}: "
            "export again, or use the inf_jax version that wrote it"
        )
    if fields["format"] < 2:
        fields["query_encoder"] = "joint"
    if fields["format"] < 3:
        fields |= _ADDED_IN_3
    if fields["format"] < 4:
        fields |= _ADDED_IN_4
    try:
        names = [field.name for field in dataclasses.fields(RetrieverConfig)]
        values = {name: fields[name] for name in names}
        values |= {"text": TextConfig(**fields["text"]), "dims": tuple(fields["dims"])}
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: {first_line(error)}; export again") from error
    for field in dataclasses.fields(RetrieverConfig):
        value, default = values[field.name], getattr(RetrieverConfig(), field.name)
        numbers = value if field.name == "dims" else [value] if type(default) is int else []
        if type(value) is not type(default) or any(type(x) is not int or x < 0 for x in numbers):
            raise UserError(f"{path}: {field.name}={value!r} is of another type; export again")
    for name, allowed in (
        ("towers", choices.TOWERS),
        ("pooling", choices.POOLINGS),
        ("query_encoder", choices.QUERY_ENCODERS),
        ("similarity", choices.SIMILARITIES),
    ):
        if values[name] not in allowed:
            raise UserError(f"{path}: {name}={values[name]!r} is not one of {', '.join(allowed)}")
    return RetrieverConfig(**values)
