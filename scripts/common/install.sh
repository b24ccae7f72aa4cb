# Sourced by scripts that install, never run: the virtual environment in .venv, kept between runs.

fail() { echo "error: $*" >&2; exit 2; }
say() { echo "[$((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))] $*"; }

# install_into_venv MARK FILE...: install the requirements files, unless .venv/MARK says that they are.
install_into_venv() {
  local mark=".venv/$1" candidate candidates found file; shift
  if cmp -s <(cat "$@" 2>/dev/null) "$mark"; then
    say "installed already, in .venv"
    return
  fi
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
  for file in "$@"; do
    pip -r "$file" || fail "installation stopped: see above; run again to continue"
  done
  pip --editable . || fail "installation stopped: see above; run again to continue"
  cat "$@" > "$mark"
}
