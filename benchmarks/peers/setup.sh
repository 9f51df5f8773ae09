#!/usr/bin/env bash
# Makes the environments of the peers in .venv-peers/, each with its pinned packages.
#
#   bash benchmarks/peers/setup.sh [sb3] [cleanrl]     (both by default)
#
# PYTHON chooses the interpreter (python3.11 by default: the pins are for 3.11). Torch comes first, so that the packages
# that need it take the one that is there.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-python3.11}"
if [ "$#" -gt 0 ]; then names=("$@"); else names=(sb3 cleanrl); fi

for name in "${names[@]}"; do
  requirements="benchmarks/peers/requirements-$name.txt"
  if [ ! -f "$requirements" ]; then
    echo "no peer is called $name" >&2
    exit 2
  fi
  "$python" -m venv ".venv-peers/$name"
  ".venv-peers/$name/bin/python" -m pip install "$(grep '^torch==' "$requirements")"
  ".venv-peers/$name/bin/python" -m pip install -r "$requirements"
done

commit="$(sed -n 's/^COMMIT = "\(.*\)"$/\1/p' benchmarks/peers/cleanrl_dqn.py)"
echo "CleanRL itself is not on the package index in this version:"
echo "  git clone https://github.com/vwxyzjn/cleanrl CHECKOUT && git -C CHECKOUT checkout $commit"
echo "  export CLEANRL_SOURCE=CHECKOUT"
