#!/usr/bin/env bash
# All checks: lint, format, and the tests, with parity with torch. Creates .venv if it is missing.
#
#   bash launch/test.sh [pytest arguments]         e.g. bash launch/test.sh tests/inf_jax -k losses
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh
set -x
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Tests of one file share expensive fixtures, so they stay in one process. Three for two cores, since
# some wait for the processes that they start.
.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
