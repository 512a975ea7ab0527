from inf_jax.losses.contrastive import (
    ENGINES as ENGINES,
)
from inf_jax.losses.contrastive import (
    contrastive_loss as contrastive_loss,
)
