#!/usr/bin/env bash
# The tests with the lowest version that pyproject.toml declares of every library that the package uses:
#   bash scripts/test_lowest.sh [pytest arguments]
# An environment of its own, in .venv-lowest. torch is the pinned build: its lowest has no small build for CPUs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv-lowest/bin/python ] || python3 -m venv .venv-lowest
export PATH="$PWD/.venv-lowest/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
wanted=.venv-lowest/lowest.txt
python - > "$wanted.new" <<'PYTHON'
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
lists = [project["dependencies"], *(libraries for extra, libraries in project["optional-dependencies"].items() if extra not in ("dev", "umap"))]
for library in sorted({library for libraries in lists for library in libraries}):
    found = re.match(r"([\w-]+(?:\[\w+\])?)>=([\d.]+)", library)
    if found and found[1] not in ("torch", "rd_hf"):
        print(f"{found[1]}=={found[2]}")
PYTHON
if ! cmp -s "$wanted.new" "$wanted"; then
    python -m pip install --quiet 'torch==2.13.0'
    # What the tests need beside them, in whichever version goes with these.
    python -m pip install --quiet -r "$wanted.new" duckdb fair-esm hypothesis polars psutil pytest pytest-xdist 'setuptools>=77'
    python -m pip install --quiet --no-deps --no-build-isolation --editable .
    mv "$wanted.new" "$wanted"
fi
python -m pip freeze | sed -n '/^\(accelerate\|datasets\|numpy\|pyarrow\|safetensors\|transformers\)==/p'
[ $# -gt 0 ] || set -- tests/data tests/bases tests/fitting tests/embedding tests/search tests/maps tests/conversion \
    tests/commands tests/hub tests/model -n 2 --dist loadfile
exec python -m pytest -q -p no:cacheprovider "$@"
