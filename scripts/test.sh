#!/usr/bin/env bash
# Set up a virtual environment in .venv (kept between runs) and run every check: lint, format, imports,
# types, documentation, tests. Works from a fresh clone; further arguments go to pytest
# (-m 'not slow' leaves out what takes longest).
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
if ! cmp -s <(cat requirements.txt requirements-ui.txt requirements-dev.txt) .venv/installed-dev.txt; then
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  # torch first and alone: what comes after it must take this one.
  .venv/bin/python -m pip install --quiet --no-compile "$(grep '^torch==' requirements.txt | cut -d' ' -f1)"
  .venv/bin/python -m pip install --quiet --no-compile -r requirements.txt -r requirements-dev.txt
  .venv/bin/python -m pip install --quiet --no-compile --no-deps -e .
  # On every core, where pip takes one, and beside the checks below, which take one each.
  .venv/bin/python -m compileall -qq -j 0 .venv/lib &
  cat requirements.txt requirements-ui.txt requirements-dev.txt > .venv/installed-dev.txt
fi
source .venv/bin/activate
# Threads that wait asleep: spinning ones slow each other down on a machine with other work.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT  # a check that fails ends the others
pyright & types=$!
ruff check .
ruff format --check .
lint-imports --no-cache
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir "${TMPDIR:-/tmp}/diffusekrona-site"
wait "$types"
wait
# The tests on every core, one thread each, a file's on one core: they share what they make. Files in
# the order of tests/conftest.py. Arguments (a path, -k, -x) go to pytest.
export OMP_NUM_THREADS=1
python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
