# Sourced by quickstart.sh and test.sh: creates or reuses .venv beside README.md and installs the project there.
# Usage: source scripts/environment.sh EXTRAS
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"
[ -x .venv/bin/python ] || python3 -m venv .venv
export PATH="$repository/.venv/bin:$PATH"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Installs only when what they are made from has changed, so that a second run starts at once.
stamp=".venv/installed-${1//,/-}"
wanted=$(cat pyproject.toml scripts/environment.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing rd_hf[$1] into .venv"
    # One pinned build, so that two machines test the same thing; pyproject.toml allows a wide range.
    python -m pip install --quiet 'torch==2.13.0'
    python -m pip install --quiet --editable ".[$1]"
    echo "$wanted" > "$stamp"
fi
