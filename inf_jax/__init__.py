"""inf_jax: training code for instruction-following retrieval.

`inf_jax.load(directory)` gives a Retriever; everything else is in the modules. Importing the
package alone imports neither JAX nor anything else that is slow.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inf_jax.retriever import Retriever, load

if sys.argv[:1] == ["-m"]:  # `python -m inf_jax.COMMAND`, whose imports take seconds
    from inf_jax.core.interrupts import end_on_interrupt

    end_on_interrupt()

__version__ = "0.1.0"
__all__ = ["Retriever", "__version__", "load"]


def __getattr__(name: str):
    if name not in ("Retriever", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from inf_jax import retriever

    return getattr(retriever, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
