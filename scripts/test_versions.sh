#!/usr/bin/env bash
# The loading, saving and numerics tests with several releases of transformers, each with a huggingface_hub of its
# day; then every release reads what every other wrote.
#
#   bash scripts/test_versions.sh                    oldest, first 5.x, middle, newest (the one installed)
#   bash scripts/test_versions.sh --only oldest      one of: oldest, first, middle, newest
#   bash scripts/test_versions.sh --matrix-only      writers and readers, without the tests
#   bash scripts/test_versions.sh --install-only     neither: the releases are put in place
#
# A release is a folder of transformers, huggingface_hub and tokenizers that goes first on PYTHONPATH, over the
# environment in .venv (or $PYTHON): torch, which is the same for all, is not installed again.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev
set -euo pipefail

declare -A transformers=([oldest]=4.57.6 [first]=5.0.0 [middle]=5.10.4)
declare -A hub=([oldest]=0.36.2 [first]=1.3.7 [middle]=1.20.1)
names=(oldest first middle newest)
run_tests=1
install_only=0
while [ $# -gt 0 ]; do
    case "$1" in
        --only) names=("$2"); shift 2 ;;
        --matrix-only) run_tests=0; shift ;;
        --install-only) install_only=1; shift ;;
        *) sed -n '2,11p' "${BASH_SOURCE[0]}"; exit 2 ;;
    esac
done

overlays="${RD_HF_OVERLAYS:-$PWD/.venv/overlays}"
export OMP_NUM_THREADS=1
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_PROGRESS_BARS=1

overlay_of() { # prints the folder of a release; nothing for the newest, which .venv holds
    [ "$1" = newest ] || echo "$overlays/${transformers[$1]}"
}

for name in "${names[@]}"; do
    folder="$(overlay_of "$name")"
    if [ -n "$folder" ] && [ ! -e "$folder/.complete" ]; then
        rm -rf "$folder"
        python -m pip install --quiet --no-warn-conflicts --target "$folder" \
            "transformers==${transformers[$name]}" "huggingface_hub==${hub[$name]}"
        touch "$folder/.complete"
    fi
done

[ "$install_only" = 0 ] || exit 0
failed=0
for name in "${names[@]}"; do
    folder="$(overlay_of "$name")"
    export RD_HF_OVERLAY="$folder" PYTHONPATH="${folder:+$folder:}$PWD"
    python -c "import transformers as t, huggingface_hub as h; print(f'== {t.__version__}, huggingface_hub {h.__version__} ==')"
    if [ "$run_tests" = 1 ]; then
        # sentence-transformers and PEFT are those of the newest release, and are tested with it.
        python -m pytest -q tests/model --ignore tests/model/test_sequential.py tests/hub/test_tokenizer.py \
            tests/hub/test_checkpoints.py tests/hub/test_push.py tests/hub/test_load.py tests/hub/test_bin.py \
            tests/hub/test_heads.py \
            -p no:cacheprovider -n 3 --dist loadfile || failed=1
    fi
    python scripts/version_matrix.py write "$work/$name"
done
for reader in "${names[@]}"; do
    folder="$(overlay_of "$reader")"
    export PYTHONPATH="${folder:+$folder:}$PWD"
    python scripts/version_matrix.py read "$work/results.jsonl" "${names[@]/#/$work/}" || failed=1
done
python scripts/version_matrix.py table "$work/results.jsonl"
exit "$failed"
