"""Which examples a step has: a pure function of (seed, step).

A permutation of the examples per epoch, drawn from (seed, epoch), cut into windows of a few steps;
a window's examples are dealt to its steps by length, so that all steps hold nearly as many tokens.
"""

import functools

import numpy as np

from inf_jax.core import packing

WINDOW_STEPS = 16  # steps that share their examples' lengths evenly


class Order:
    """The order of n examples; threads may share it.

    Args:
      tokens: int[n], tokens of each example.
      seed: of the permutations.
      batch_size: examples a step.
    """

    def __init__(self, tokens: np.ndarray, *, seed: int, batch_size: int):
        self._tokens, self._seed, self._batch_size = tokens, seed, batch_size
        self._permutation = functools.lru_cache(maxsize=2)(self._epoch_order)
        self._window = functools.lru_cache(maxsize=4)(self._window_steps)

    def examples(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step; epochs follow each other without a gap.

        Each window of WINDOW_STEPS * batch_size examples of the permuted stream is used once,
        whole.
        """
        window, inside = divmod(step, WINDOW_STEPS)
        return self._window(window)[inside]

    def _window_steps(self, window: int) -> np.ndarray:
        size = WINDOW_STEPS * self._batch_size
        epochs, inside = np.divmod(np.arange(window * size, (window + 1) * size), len(self._tokens))
        examples = np.concatenate(
            [self._permutation(int(e))[inside[epochs == e]] for e in np.unique(epochs)]
        )
        return examples[packing.assign_to_chunks(self._tokens[examples], WINDOW_STEPS)]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        return generator.permutation(len(self._tokens))
