from inf_jax.models.hf.weights import (
    Weights as Weights,
)
from inf_jax.models.hf.weights import (
    load_carried as load_carried,
)
from inf_jax.models.hf.weights import (
    load_weights as load_weights,
)
from inf_jax.models.hf.weights import (
    main as main,
)
from inf_jax.models.hf.weights import (
    resolve_model as resolve_model,
)
from inf_jax.models.hf.weights import (
    save_weights as save_weights,
)
