#!/usr/bin/env bash
# Before a release: what stands on the pages is what their commands print and their result files hold; see tests/pages.py.
# bash scripts/check_pages.sh [page ...], by default all; minutes
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev
exec python -m tests.pages "$@"
