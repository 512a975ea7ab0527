#!/usr/bin/env bash
# Correctness and speed on this host's GPU or TPU, see launch/device_check.py. No network is needed.
#
#   bash launch/device_check.sh [--out=DIR] [--minutes=8] [--only=NAMES] [--tiny]
#   PYTHON=/path/to/python3 bash launch/device_check.sh      default: .venv's, else python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
exec "$python" -m launch.device_check "$@"
