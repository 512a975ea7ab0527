from inf_jax.metrics.ranking import (
    average_precision as average_precision,
)
from inf_jax.metrics.ranking import (
    mrr as mrr,
)
from inf_jax.metrics.ranking import (
    ndcg as ndcg,
)
from inf_jax.metrics.ranking import (
    p_mrr as p_mrr,
)
from inf_jax.metrics.ranking import (
    recall as recall,
)
from inf_jax.metrics.ranking import (
    robustness as robustness,
)
from inf_jax.metrics.ranking import (
    sicr as sicr,
)
from inf_jax.metrics.ranking import (
    wise as wise,
)
from inf_jax.metrics.ranking import (
    worst_of_groups as worst_of_groups,
)
