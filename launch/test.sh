#!/usr/bin/env bash
# All checks: lint, format, and the tests, with parity with torch. Creates .venv if it is missing.
#
#   bash launch/test.sh [pytest arguments]         e.g. bash launch/test.sh tests/inf_jax -k losses
#   bash launch/test.sh --short                    what other releases of JAX break first; torch is not needed
#   PYTHON=/path/to/python3.12 bash launch/test.sh in that Python's own environment, see launch/setup_env.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly short=(
  tests/inf_jax/losses/test_contrastive_golden.py
  tests/inf_jax/models/test_transformer.py::test_hidden_states
  "tests/inf_jax/training/test_step.py::test_any_mesh_and_chunking_gives_the_same_gradients[mesh2-1-ring-options2]"
  tests/inf_jax/commands/test_train.py::test_killed_and_resumed_equals_undisturbed_bit_for_bit
)

bash launch/setup_env.sh
venv=$(bash launch/setup_env.sh --where)
unset PYTHONDONTWRITEBYTECODE # the tests start many processes: each would compile the sources again
set -x
if [[ ${1:-} == --short ]]; then
  exec "$venv/bin/python" -m pytest -n 2 "${short[@]}" "${@:2}"
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
# Tests of one file share expensive fixtures, so they stay in one process. Three for two cores, since
# some wait for the processes that they start.
"$venv/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
