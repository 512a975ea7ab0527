"""Encodes texts with a trained model: `load(directory).encode(texts)`."""

from inf_jax.retriever.loading import load as load
from inf_jax.retriever.retriever import Retriever as Retriever
from inf_jax.retriever.settings import RetrieverConfig as RetrieverConfig
