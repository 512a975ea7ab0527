#!/usr/bin/env bash
# All checks: lint, format, tests with torch parity. Makes the environment if it is missing.
#
#   bash launch/test.sh [pytest arguments]         e.g. bash launch/test.sh tests/inf_jax -k losses
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh
set -x
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# A file's tests share what is dear to make. Files in order, see .pytest.ini.
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
