#!/usr/bin/env bash
# All tests, from a fresh clone: bash scripts/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev
# The first publication's code, to compare with; its pins would replace half of the environment.
python -c 'import reverse_distillation.scaler.rd' 2>/dev/null \
    || python -m pip install --quiet --no-deps 'reverse-distillation==0.1.0'
if [ $# -eq 0 ]; then
    ruff check .
    ruff format --check .
    mypy
    # Three workers with a thread each, for two cores: many tests wait for processes of their own. A file's tests share its fixtures.
    export OMP_NUM_THREADS=1
    set -- -n 3 --dist loadfile --no-loadscope-reorder
fi
# Warnings are errors in tests/data and tests/model, but for those that pyproject.toml names.
export RD_HF_WARNINGS=error
exec python -m pytest "$@"
