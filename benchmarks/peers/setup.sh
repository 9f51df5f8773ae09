#!/usr/bin/env bash
# Makes the environments of the peers in .venv-peers/, each with its pinned packages.
#
#   bash benchmarks/peers/setup.sh [sb3] [cleanrl] [jax] [dopamine] [revisiting] [sf] [actorq] [fastpbrl]   (all by default)
#
# PYTHON chooses the interpreter (python3.11 by default: the pins are for 3.11), PYTHON38 that of `revisiting` (python3.8),
# which is left out of "all" where there is none. Torch comes first, so that the packages that need it take the one that
# is there. Of dopamine and revisiting the files name all that is wanted, and less than the packages ask for.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-python3.11}"
old="${PYTHON38:-python3.8}"
names=("$@")
if [ "$#" -eq 0 ]; then
  names=(sb3 cleanrl jax dopamine sf actorq fastpbrl)
  if "$old" --version >/dev/null 2>&1; then names+=(revisiting); else echo "without revisiting: no $old" >&2; fi
fi

for name in "${names[@]}"; do
  requirements="benchmarks/peers/requirements-$name.txt"
  if [ ! -f "$requirements" ]; then
    echo "no peer is called $name" >&2
    exit 2
  fi
  interpreter="$python"
  options=()
  case "$name" in
    dopamine) options=(--no-deps) ;;
    revisiting) interpreter="$old" options=(--no-deps) ;;
  esac
  "$interpreter" -m venv ".venv-peers/$name"
  torch="$(grep '^torch==' "$requirements" || true)"
  if [ -n "$torch" ]; then ".venv-peers/$name/bin/python" -m pip install "$torch"; fi
  ".venv-peers/$name/bin/python" -m pip install "${options[@]}" -r "$requirements"
done

commit_of() { sed -n 's/^COMMIT = "\(.*\)"$/\1/p' "benchmarks/peers/$1.py"; }
echo "CleanRL, PureJaxRL, Revisiting Rainbow, ActorQ and fastpbrl themselves are not on the package index in these versions:"
echo "  git clone https://github.com/vwxyzjn/cleanrl CLEANRL && git -C CLEANRL checkout $(commit_of cleanrl)"
echo "  git clone https://github.com/luchris429/purejaxrl PUREJAXRL && git -C PUREJAXRL checkout $(commit_of vmapped)"
echo "  git clone https://github.com/JohanSamir/revisiting_rainbow REVISITING && git -C REVISITING checkout $(commit_of dopamine)"
echo "  git clone https://github.com/harvard-edge/QuaRL ACTORQ && git -C ACTORQ checkout $(commit_of actorq)"
echo "  git clone https://github.com/instadeepai/fastpbrl FASTPBRL && git -C FASTPBRL checkout $(commit_of fastpbrl)"
echo "  export CLEANRL_SOURCE=CLEANRL PUREJAXRL_SOURCE=PUREJAXRL REVISITING_SOURCE=REVISITING ACTORQ_SOURCE=ACTORQ"
echo "  export FASTPBRL_SOURCE=FASTPBRL"
