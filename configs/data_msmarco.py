"""The paper's largest subset: triplets from MS MARCO, written and judged by OpenAI's models.

Data:      collection.tsv, queries.train.tsv and qrels.train.tsv of MS MARCO passage ranking, in
           data/msmarco (https://microsoft.github.io/msmarco/Datasets)
Command:   python -m data_pipeline.run --config=configs/data_msmarco.py --dry-run
           python -m data_pipeline.run --config=configs/data_msmarco.py --max-usd=250
Key:       in the environment, OPENAI_API_KEY
Cost:      --dry-run tells; by the Batch API, at half the price
Result:    out/msmarco/corpus/train.jsonl, out/msmarco/audit.html, and the dataset
           out/msmarco/data: --config.data.dir=out/msmarco/data --config.data.source=factory

Generator and judge are those of arXiv 2505.21439, section 3.
"""

from ml_collections import ConfigDict

from data_pipeline.config import defaults


def get_config() -> ConfigDict:
    """20,000 pairs; what the judge leaves of them is the corpus."""
    config = defaults()
    config.out_dir = "out/msmarco"
    config.source.kind = "msmarco"
    config.source.path = "data/msmarco"
    config.source.license = "other"  # MS MARCO is for non-commercial research
    config.source.count = 20_000

    config.llm.mode = "batch"
    config.generate.model = "gpt-4o-mini"
    config.judge.model = "o3-mini"
    config.judge.reasoning_effort = "low"

    config.corpus.dev_fraction = 0.02
    return config
