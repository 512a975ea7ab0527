#!/usr/bin/env bash
# Creates .venv with everything that the demo and the tests need. If .venv is up to date, it does nothing;
# after an interrupted installation it starts from scratch.
#
#   bash launch/setup_env.sh                       with uv if it is on PATH, else with venv and pip
#   PYTHON=/path/to/python3.12 bash launch/setup_env.sh     makes .venv-3.12, which can lie beside .venv
#   EXTRAS=pipeline,test bash launch/setup_env.sh  other extras of setup.py than those
#   bash launch/setup_env.sh --where               only prints the environment's directory
#
# The exact versions: launch/constraints.txt for Python 3.11, launch/constraints_py312.txt for newer ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly extras=${EXTRAS:-torch,minilm,pipeline,beam,gcs,peft,benchmark,test}
readonly installing=installing

say() { printf 'environment: %s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
have_uv() { command -v uv >/dev/null; }
environment() { # its directory: that of PYTHON's version, or .venv
  local version
  if [[ -z ${PYTHON:-} ]]; then
    echo .venv
    return
  fi
  new_enough "$PYTHON" || die "PYTHON=$PYTHON: cannot be run, or is older than Python 3.11"
  version=$("$PYTHON" -c 'print("%d.%d" % __import__("sys").version_info[:2])')
  echo ".venv-$version"
}

# find_python: a Python that is new enough, or the version that uv finds or downloads.
find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
    if new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  have_uv || die "no Python 3.11 or newer on PATH (python3 is $(python3 --version 2>&1 || true));" \
    "install one, or uv, which downloads one, or set PYTHON=/path/to/python3.12"
  echo ">=3.11"
}

# make_venv FLAG: FLAG is uv's --clear or --allow-existing, for an existing environment.
make_venv() {
  local base
  base=$(find_python)
  if have_uv; then
    say "creating $venv with uv"
    uv venv --quiet --seed "$1" --python "$base" "$venv" || die "uv could not create $venv, see above"
  else
    say "creating $venv with $("$base" --version)"
    if [[ $1 == --clear ]]; then rm -rf "$venv"; fi
    "$base" -m venv "$venv" ||
      die "$base could not create $venv, see above; on Debian and Ubuntu: apt-get install python3-venv"
  fi
}

venv=$(environment)
readonly venv python=$venv/bin/python
readonly state=$venv/.inf_jax-state # a hash of what is installed, or "installing"
if [[ ${1:-} == --where ]]; then
  echo "$venv"
  exit 0
fi

wanted=$({
  cat setup.py launch/constraints.txt launch/constraints_py312.txt launch/setup_env.sh
  echo "$extras"
  pwd
} | sha256sum)
wanted=${wanted%% *}
installed=$(cat "$state" 2>/dev/null || true)
if [[ $installed == "$wanted" ]] && "$python" -c '' 2>/dev/null; then
  say "$venv is up to date, nothing to install"
  exit 0
fi

started=$SECONDS
if [[ $installed == "$installing" ]]; then
  say "an installation was interrupted, starting from scratch"
  make_venv --clear
elif ! "$python" -c '' 2>/dev/null; then
  make_venv --clear
elif ! new_enough "$python"; then
  die "$venv has $("$python" --version), but 3.11 or newer is required; remove it: rm -r $PWD/$venv"
elif ! "$python" -m pip --version >/dev/null 2>&1; then
  make_venv --allow-existing
fi
echo "$installing" >"$state"

constraints=launch/constraints.txt
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then constraints=launch/constraints_py312.txt; fi
export PIP_DISABLE_PIP_VERSION_CHECK=1

# torch first, and with pip: if PyTorch's index can be reached, its CPU build is preferred to the CUDA build
# of the same release, which needs gigabytes. Without dependencies, so that pip waits for an index that does
# not answer only once (half a minute), and not once per package.
if [[ ,$extras, =~ ,(torch|minilm|peft), ]]; then
  torch=$(grep '^torch==' "$constraints")
  say "installing $torch, CPU build (200 MB)"
  "$python" -m pip install --no-deps --retries 1 --timeout 15 "$torch" \
    --extra-index-url https://download.pytorch.org/whl/cpu || die "$torch could not be installed, see above"
fi

say "installing the rest of $constraints (about 100 packages, 1 to 3 minutes)"
rest=(-c "$constraints" -e ".[$extras]")
if have_uv; then
  uv pip install --quiet --python "$python" --compile-bytecode "${rest[@]}"
else
  "$python" -m pip install --quiet "${rest[@]}"
fi || die "the installation failed, see above; fix it and run this again"

echo "$wanted" >"$state.new"
mv "$state.new" "$state"
say "$venv is ready ($((SECONDS - started)) s)"
