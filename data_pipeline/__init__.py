"""The data pipeline: from sources of texts to the dataset that inf_jax trains on."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m data_pipeline.COMMAND`, whose imports take seconds
    from inf_jax.core.interrupts import end_on_interrupt

    end_on_interrupt()
