"""The triplet factory on 20 pairs of the shipped PubMedQA sample, against a server of your own.

Server:    anything that speaks OpenAI's wire format on port 8000: vLLM, llama.cpp, or tests' fake
           of the tests, `python tests/doubles/llm_server.py --port 8000`
Command:   python -m data_pipeline.run --config=configs/data_sample.py
Time:      seconds with the fake
Result:    out/sample/audit.html, and the dataset out/sample/data/inf_ir/factory
"""

from pathlib import Path

from ml_collections import ConfigDict

import data_pipeline
from data_pipeline.config import defaults


def get_config() -> ConfigDict:
    """20 pairs of 200; --config.source.count=0 takes all."""
    config = defaults()
    config.out_dir = "out/sample"
    config.source.kind = "beir"
    config.source.path = str(Path(data_pipeline.__file__).parent / "samples" / "pubmedqa")
    config.source.license = "mit"
    config.source.count = 20

    config.llm.base_url = "http://127.0.0.1:8000/v1"
    for stage in (config.query, config.generate, config.judge):
        stage.model = "local"
        stage.price = (0.0, 0.0)
    return config
