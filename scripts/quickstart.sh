#!/usr/bin/env bash
# From a fresh clone to one labelled picture, on any machine with Python 3.11 or newer: makes a
# virtual environment in .venv, installs, fine-tunes a sample subject on the bundled base `pocket`,
# merges, draws and scores. What is done already is not done again.
#   bash scripts/quickstart.sh
#   SUBJECT=teapot bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SUBJECT="${SUBJECT:-dog}"           # dog, cat or teapot: see data/README.md
CLASS="${CLASS:-$SUBJECT}"          # what it is, in a word that the base knows
RUN="outputs/$SUBJECT/quickstart_pocket_$CLASS"  # delete this folder to fine-tune anew
PYTHON="${PYTHON:-}"                # empty: the first that is new enough
TORCH_INDEX="${TORCH_INDEX:-}"      # another index for PyTorch, such as its CPU-only one

fail() { echo "error: $*" >&2; exit 2; }
say() { echo "[$((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))] $*"; }

[ -d "data/$SUBJECT/input" ] || fail "no pictures in data/$SUBJECT/input: set SUBJECT to one of" \
  "$(for folder in data/*/input; do basename "$(dirname "$folder")"; done | tr '\n' ' ')"

if cmp -s requirements.txt .venv/installed.txt; then
  say "installed already, in .venv"
else
  candidates=(python3 python3.11 python3.12 python3.13 python3.14 python)
  [ -z "$PYTHON" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
      && found="$candidate" && break
  done
  [ -n "${found:-}" ] || fail "needs Python 3.11 to 3.14, and ${PYTHON:-python3} is" \
    "$("${PYTHON:-python3}" --version 2>/dev/null || echo not there):" \
    "install one, or name it: PYTHON=/path/to/python3.11"
  "$found" -c 'import ensurepip, venv' 2>/dev/null || fail "$found cannot make virtual environments:" \
    "install its venv module (Debian and Ubuntu: apt install python3-venv)"
  say "installing into .venv: some minutes, most of them for PyTorch"
  "$found" -m venv .venv
  # PyTorch first, as it may come from an index of its own. Python compiles the modules that are
  # used when they are; compiling all of them now would take a minute.
  pip() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
  pip ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' requirements.txt | cut -d' ' -f1)" \
    || fail "PyTorch could not be installed: see above"
  pip -r requirements.txt && pip --editable . || fail "installation stopped: see above; run again to go on"
  cp requirements.txt .venv/installed.txt
fi
export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH" PYTHON="$PWD/.venv/bin/python"
# Threads that wait for each other asleep instead of spinning: on a CPU that is busy with something
# else too, small models run many times faster; on an idle one it makes no difference.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

if [ -f "$RUN/adapter.safetensors" ]; then
  say "fine-tuned already, in $RUN"
else
  say "fine-tuning pocket on the pictures in data/$SUBJECT/input"
  MODEL_NAME=pocket SUBJECT="$SUBJECT" CLASS="$CLASS" OUTPUT_DIR="$RUN" bash scripts/finetune_sd.sh
fi

say "merging, drawing, scoring"
"$PYTHON" -m diffusekrona.quickstart --adapter "$RUN" --photos "data/$SUBJECT/input" \
  --class_word "$CLASS" --output "$RUN/quickstart.png" "$@"
say "done"
