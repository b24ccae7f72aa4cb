#!/usr/bin/env bash
# The page in the browser: train, watch, draw, compare, without a shell. Makes a virtual environment
# in .venv and installs into it once; needs neither a GPU nor an account.
#   bash scripts/ui.sh
#   PORT=8000 bash scripts/ui.sh --no_browser      further flags: diffusekrona ui --help
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PORT="${PORT:-7860}"                # of http://127.0.0.1:7860/
PYTHON="${PYTHON:-}"                # empty: the first that is new enough
TORCH_INDEX="${TORCH_INDEX:-}"      # another index for PyTorch, such as its CPU-only one

source scripts/common/install.sh
install_into_venv installed-ui.txt requirements.txt requirements-ui.txt
export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"
# Threads that wait for each other asleep, as in scripts/quickstart.sh.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
exec .venv/bin/python -m diffusekrona.ui --port "$PORT" "$@"
