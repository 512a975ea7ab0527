"""Says how a config mixes its sources."""

from collections.abc import Sequence
from fractions import Fraction

from inf_jax.config.mixture import mixture_sources, temperature_weights, whole_weights
from inf_jax.config.sections import RunConfig
from inf_jax.data.mixture.order import Mixing
from inf_jax.data.tokenised.dataset import TokenisedDataset


def mixing_of(
    config: RunConfig, found: Sequence[TokenisedDataset], numbers: Sequence[int]
) -> Mixing:
    """The mixing of the datasets of some of the mixture's sources, which have these numbers."""
    data = config.data
    sources = [mixture_sources(data.mixture)[n] for n in numbers]
    if data.mixture_temperature:
        pairs = [one.num_examples * one.pairs_per_example for one in found]
        weights = temperature_weights(pairs, data.mixture_temperature)
    else:
        weights = whole_weights([source.weight or Fraction(1) for source in sources])
    return Mixing(
        names=tuple(source.name for source in sources),
        weights=weights,
        homogeneous=data.mixture_batches == "homogeneous",
        max_epochs=data.max_epochs,
        leave=data.at_max_epochs == "leave",
    )
