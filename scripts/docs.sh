#!/usr/bin/env bash
# The site, from a fresh clone, offline once it is installed: bash scripts/docs.sh [folder, by default build/site]
# Its notebooks run; a dead link, a page out of the menu or a notebook that fails ends it.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" docs
# A family of megabytes is done before a second thread has started, and two notebooks run at a time.
export OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1
site=$(realpath -m "${1:-build/site}")  # mkdocs reads a relative path from its own folder
python -m mkdocs build --strict --config-file scripts/docs/mkdocs.yml --site-dir "$site"
echo "the site: $site/index.html (to search it: python -m http.server --directory $site)"
