from inf_jax.retriever.retriever import (
    Retriever as Retriever,
)
from inf_jax.retriever.retriever import (
    RetrieverConfig as RetrieverConfig,
)
from inf_jax.retriever.retriever import (
    load as load,
)
