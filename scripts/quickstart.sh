#!/usr/bin/env bash
# From a fresh clone to one labelled picture, on any machine with Python 3.11 or newer: makes a
# virtual environment in .venv, installs, fine-tunes a sample subject on the bundled base `pocket`,
# merges, draws and scores. What is done already is not done again.
#   bash scripts/quickstart.sh
#   SUBJECT=teapot bash scripts/quickstart.sh
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SUBJECT="${SUBJECT:-dog}"           # dog, cat, teapot, backpack, duck or car: see data/README.md
CLASS="${CLASS:-$SUBJECT}"          # what it is, in a word that the base knows
TOKEN="${TOKEN:-sks}"               # identifier: a word that means nothing to the base
RUN="outputs/$SUBJECT/quickstart_pocket_$CLASS"  # delete this folder to fine-tune again
PYTHON="${PYTHON:-}"                # empty: the first that is new enough
TORCH_INDEX="${TORCH_INDEX:-}"      # another index for PyTorch, such as its CPU-only one

source scripts/common/install.sh

[ -d "data/$SUBJECT/input" ] || fail "no pictures in data/$SUBJECT/input: set SUBJECT to one of" \
  "$(for folder in data/*/input; do basename "$(dirname "$folder")"; done | tr '\n' ' ')"

install_into_venv installed.txt requirements.txt
export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH" PYTHON="$PWD/.venv/bin/python"
# Threads that wait for each other asleep instead of spinning: on a CPU that is busy with something
# else too, small models run many times faster; on an idle one it makes no difference.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

if [ -f "$RUN/adapter.safetensors" ]; then
  say "fine-tuned already, in $RUN"
else
  say "fine-tuning pocket on the pictures in data/$SUBJECT/input"
  MODEL_NAME=pocket SUBJECT="$SUBJECT" CLASS="$CLASS" TOKEN="$TOKEN" OUTPUT_DIR="$RUN" \
    bash scripts/finetune_sd.sh
fi

say "merging, drawing, scoring"
"$PYTHON" -m diffusekrona.quickstart --adapter "$RUN" --photos "data/$SUBJECT/input" \
  --class_word "$CLASS" --identifier "$TOKEN" --output "$RUN/quickstart.png" "$@"
say "done"
