"""Triton on machines without a GPU: tests under its interpreter, and kernels compiled for CUDA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[3]


def pass_under_the_interpreter(tests: str) -> None:
    """Run a file of tests in a separate process: Triton must be configured before its import."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840)
    assert found.returncode == 0, found.stdout
    assert " passed" in found.stdout


class Compiled(NamedTuple):
    """A kernel compiled for compute capability 9.0."""

    stack: int
    """Bytes that each thread keeps outside of its registers."""
    ptx: str


def compiled(
    kernel: Any,
    types: dict[str, Any],
    constants: dict[str, Any],
    folder: Path,
    **options: int,
) -> Compiled:
    """A kernel whose arguments in capitals are `constants` (else False) and the others of `types` (else float32)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    fixed = {name: constants.get(name, False) for name in names if name.isupper()}
    signature = {name: "constexpr" if name in fixed else types.get(name, "fp32") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in fixed.items()})
    made, cubin = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options), folder / "kernel.cubin"
    cubin.write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", said)
    assert found is not None
    return Compiled(int(found.group(1)), made.asm["ptx"])
