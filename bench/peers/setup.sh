#!/bin/sh
# Makes .venv-peers: this project's trainer as in .venv, and beside it each peer that can be installed. What kept one
# from it is left in .venv-peers/missing, for the table to tell.
set -eu

VENV=.venv-peers EXTRAS=worker sh scripts/setup.sh
rm -rf .venv-peers/missing
mkdir .venv-peers/missing
grep -v '^#' bench/peers/requirements.txt | while read -r peer; do
    name=${peer%%==*}
    echo "Installing $peer"
    # torch is named again, so that a peer which wants another one fails instead of replacing it
    if ! .venv-peers/bin/python -m pip install -qq --disable-pip-version-check --no-input \
        -c requirements/constraints.txt "torch==$TORCH" "$peer" >.venv-peers/peer.log 2>&1; then
        grep -i error .venv-peers/peer.log | tail -n 1 >".venv-peers/missing/$name"
        echo "  not installed: $(cat ".venv-peers/missing/$name")"
    fi
done
rm -f .venv-peers/peer.log
touch .venv-peers/.peers
