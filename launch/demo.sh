#!/usr/bin/env bash
# Demo, end to end: shipped triplets -> TFRecords -> train -> evaluate -> Hugging Face model.
#
#   bash launch/demo.sh [--config.KEY=VALUE ...]   e.g. --config.train.steps=20 --config.out_dir=out/try
#
# Creates .venv if it is missing, then computes for up to 10 minutes on 2 cores; needs no accelerator and no
# Hugging Face hub. Run again, it reuses finished steps. Each step is one command, which is printed and can
# be run by itself. The config keys go to train, evaluate and export (python -m inf_jax.train --help).
set -euo pipefail

data_dir=out/data
for argument in "$@"; do
  case $argument in
    -h | --help)
      sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --config.data.dir=*) data_dir=${argument#*=} ;;
    --config.*=*) ;;
    *)
      printf 'error: %s: unknown argument; use --config.KEY=VALUE or --help\n' "$argument" >&2
      exit 2
      ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh

# Huge pages for XLA's large temporaries make a step about a fifth faster; an old glibc ignores this.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # the model comes in a package: do not wait for the hub
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

names=()
seconds=()
step() { # step NAME COMMAND...: prints, runs and times a command
  local name=$1 started=$SECONDS
  shift
  printf '\n== %s\n$' "$name"
  printf ' %q' "$@"
  printf '\n'
  "$@"
  names+=("$name")
  seconds+=($((SECONDS - started)))
}

venv=$(bash launch/setup_env.sh --where)
readonly python=$venv/bin/python
run=(--config=configs/medquad_minilm.py "$@")
step build "$python" -m data_pipeline.build --source=medquad --keyword-instructions \
  --data-dir="$data_dir"
step train "$python" -m inf_jax.train "${run[@]}"
step evaluate "$python" -m inf_jax.evaluate "${run[@]}"
step export "$python" -m inf_jax.export "${run[@]}"

printf '\n== done\n'
for i in "${!names[@]}"; do printf '%-10s %4d s\n' "${names[i]}" "${seconds[i]}"; done
"$python" - "${run[@]}" <<'SUMMARY'
import json
import sys
from pathlib import Path

from inf_jax.config.command_line import parse
from inf_jax.evaluation.scores import METRICS

config = parse(["demo", *sys.argv[1:]])
out_dir = Path(config.out_dir)
scores = json.loads((out_dir / "eval.json").read_text())
print(f"\n{config.eval.split + ' split, times 100':24}    base  trained")
for key, trained in scores["trained"].items():
    print(f"{METRICS[key]:24} {scores['base'][key]:7.1f} {trained:8.1f}")
export = Path(config.export.dir or out_dir / "export")
print(f"""
figure              {out_dir}/eval.png
Hugging Face model  {export}

  import inf_jax
  model = inf_jax.load({str(export)!r})
  model.encode(["Wilson disease"], instruction="What are the treatments for it?")""")
SUMMARY
