"""Lists the sources of pairs that datasets are built from."""

import functools
from pathlib import Path
from typing import Any

from data_pipeline.dataset.inputs import InfIrConfig, input_tree
from data_pipeline.sources import beir, fields, msmarco
from data_pipeline.sources.training import nevir, pubmedqa, synthetic

_UNKNOWN = "that of the source"
_source = functools.partial(InfIrConfig, example=None, plain=True)


def _layout_files(path: str | Path, **options: Any) -> list[Path]:
    """All `input_tree` of a directory with a layout, but hidden ones; or the file itself."""
    del options
    if Path(path).is_file():
        return [Path(path)]
    files = (file.relative_to(path) for file in input_tree(Path(path)))
    shown = (file for file in files if not any(part.startswith(".") for part in file.parts))
    return [Path(path, file) for file in sorted(shown)]


FIELDS_SOURCE = _source(
    name="fields",
    description="Rows of jsonl, parquet or JSON files: (query, passage) pairs with or without "
    "instruction, negatives and teacher scores.",
    read=fields.read,
    license=_UNKNOWN,
)
BEIR = _source(
    name="beir",
    description="Judged (query, passage) pairs of a directory in BEIR's layout.",
    read=beir.read,
    files=_layout_files,
    license=_UNKNOWN,
)
MSMARCO = _source(
    name="msmarco",
    description="Judged (query, passage) pairs of MS MARCO's passage ranking files.",
    read=msmarco.read,
    files=_layout_files,
    homepage="https://microsoft.github.io/msmarco/",
    license="see the corpus' homepage: non-commercial research",
)
NEVIR = _source(
    name="nevir",
    description="NevIR: queries whose two passages differ by a negation, each the other's "
    "negative.",
    read=nevir.read,
    path_train=str(Path(__file__).parents[1] / "samples" / "nevir" / "train.jsonl.gz"),
    homepage="https://github.com/orionw/NevIR",
    citation="""@inproceedings{weller-etal-2024-nevir,
  author = {Orion Weller and Dawn Lawrie and Benjamin {Van Durme}},
  title = {{NevIR}: Negation in Neural Information Retrieval},
  booktitle = {EACL}, year = {2024},
}""",
    license="MIT",
)
PUBMEDQA = _source(
    name="pubmedqa",
    description="PubMedQA: questions, and the abstracts that answer them.",
    read=pubmedqa.read,
    homepage="https://pubmedqa.github.io",
    citation="""@inproceedings{jin-etal-2019-pubmedqa,
  author = {Qiao Jin and Bhuwan Dhingra and Zhengping Liu and William Cohen and Xinghua Lu},
  title = {{PubMedQA}: A Dataset for Biomedical Research Question Answering},
  booktitle = {EMNLP-IJCNLP}, year = {2019},
}""",
    license="MIT",
)
SYNTHETIC = _source(
    name="synthetic",
    description="Pairs for rehearsals: sentences of MedQuAD, recombined at random. They say "
    "nothing true.",
    read=synthetic.read,
    path_train=str(synthetic.SAMPLE),
    license="CC BY 4.0, that of MedQuAD",
)
PAIR_CONFIGS = [FIELDS_SOURCE, BEIR, MSMARCO, NEVIR, PUBMEDQA, SYNTHETIC]
