#!/bin/sh
# Writes the versions installed in .venv as pip constraints. torch and what comes with it are left out: their build
# depends on the machine, and the Makefile pins them.
set -eu
pins=requirements/constraints.txt
{
    echo "# Versions that the tests ran with; written by \`make pins\`. torch is pinned in the Makefile."
    .venv/bin/python -m pip freeze --exclude-editable --exclude stillhouse |
        grep -viE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)(==| @)'
} >"$pins.new"
mv "$pins.new" "$pins"
echo "Wrote $pins"
