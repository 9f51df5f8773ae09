#!/usr/bin/env bash
# Makes the environments of the peers in .venv-peers/, each with its pinned packages.
#
#   bash benchmarks/peers/setup.sh [sb3] [cleanrl] [jax] [sf] [actorq]     (all by default)
#
# PYTHON chooses the interpreter (python3.11 by default: the pins are for 3.11). Torch comes first, so that the packages
# that need it take the one that is there.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-python3.11}"
if [ "$#" -gt 0 ]; then names=("$@"); else names=(sb3 cleanrl jax sf actorq); fi

for name in "${names[@]}"; do
  requirements="benchmarks/peers/requirements-$name.txt"
  if [ ! -f "$requirements" ]; then
    echo "no peer is called $name" >&2
    exit 2
  fi
  "$python" -m venv ".venv-peers/$name"
  torch="$(grep '^torch==' "$requirements" || true)"
  if [ -n "$torch" ]; then ".venv-peers/$name/bin/python" -m pip install "$torch"; fi
  ".venv-peers/$name/bin/python" -m pip install -r "$requirements"
done

commit_of() { sed -n 's/^COMMIT = "\(.*\)"$/\1/p' "benchmarks/peers/$1.py"; }
echo "CleanRL, PureJaxRL and ActorQ themselves are not on the package index in these versions:"
echo "  git clone https://github.com/vwxyzjn/cleanrl CLEANRL && git -C CLEANRL checkout $(commit_of cleanrl)"
echo "  git clone https://github.com/luchris429/purejaxrl PUREJAXRL && git -C PUREJAXRL checkout $(commit_of jax_ppo)"
echo "  git clone https://github.com/harvard-edge/QuaRL ACTORQ && git -C ACTORQ checkout $(commit_of actorq)"
echo "  export CLEANRL_SOURCE=CLEANRL PUREJAXRL_SOURCE=PUREJAXRL ACTORQ_SOURCE=ACTORQ"
