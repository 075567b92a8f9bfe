#!/usr/bin/env bash
# Every path that a GPU takes, checked and timed within ten minutes on one card; one JSON with all that was reached.
#
#   bash scripts/gpu_check.sh                                  on this machine's GPU, into gpu_check.json
#   bash scripts/gpu_check.sh --json results.json --seconds 300
#   bash scripts/gpu_check.sh --device cpu --small             that the script runs through: minutes before a GPU is lent
#
# Takes the Python of .venv, or $PYTHON, with rd_hf's dependencies in it; installs nothing. What a killed run had
# reached is in the JSON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
export PYTHONPATH="$PWD:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec "$python" -m benchmarks.gpu_check "$@"
