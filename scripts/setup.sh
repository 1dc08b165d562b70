#!/bin/sh
# Makes .venv, or what VENV names: Python, torch (its CPU build where there is no GPU), then Stillhouse with pinned
# dependencies.
# `.installing` marks a set-up in progress, so that one that was interrupted is made anew, not built upon;
# `.ready` marks a complete one, and make runs this script only when it is missing or out of date.
set -eu

VENV=${VENV:-.venv}
EXTRAS=${EXTRAS:-worker,demo,test}

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
        # A version manager's shim exists and fails: only running it tells.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "Stillhouse needs Python 3.11 or newer; tried: ${PYTHON:-python3.11 to python3.14, python3}." >&2
    echo "Install one, or name it: make setup PYTHON=/path/to/python" >&2
    return 1
}

make_venv() {
    if [ -e $VENV/.installing ] || ! $VENV/bin/python -c 'import pip' >/dev/null 2>&1; then
        python=$(find_python)
        echo "Making $VENV with $("$python" --version)"
        # --clear also replaces what an interrupted set-up left behind.
        "$python" -m venv --clear $VENV || {
            echo "$python can not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        }
    fi
    touch $VENV/.installing
    rm -f $VENV/.ready
}

install() {
    $VENV/bin/python -m pip install -qq --disable-pip-version-check --no-input \
        -c requirements/constraints.txt "$@"
}

has_gpu() {
    nvidia-smi -L 2>/dev/null | grep -q GPU
}

install_torch() {
    if [ "$(uname)" = Darwin ] || has_gpu; then
        echo "Installing torch $TORCH"
        install "torch==$TORCH"
        return
    fi
    echo "Installing torch $TORCH, CPU build (200 MB)"
    attempt=$VENV/torch.log
    if install "torch==$TORCH+cpu" >"$attempt" 2>&1; then
        return
    fi
    if ! grep -q 'No matching distribution found for torch==' "$attempt"; then
        cat "$attempt" >&2
        return 1
    fi
    echo "  not in pip's own indexes; taking it from $TORCH_CPU_INDEX"
    install --extra-index-url "$TORCH_CPU_INDEX" "torch==$TORCH+cpu"
}

make_venv
install_torch
echo "Installing Stillhouse and its dependencies"
install -e ".[$EXTRAS]"
rm -f $VENV/.installing $VENV/torch.log
touch $VENV/.ready
echo "Ready: $VENV"
