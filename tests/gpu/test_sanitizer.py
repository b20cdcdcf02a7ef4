"""compute-sanitizer on the kernels: it must find a read past the end, or a run without findings proves nothing."""

import shutil
import subprocess
import sys

import pytest
from gpu_steps import SANITIZER_ERROR, under
from support.numerics import backends_of

PAST_THE_END = """
import sys, torch
import lgf_kernels as lgf
features = torch.randn(1, 3, 9, 19, 40, device="cuda", dtype=torch.bfloat16)
features.untyped_storage().resize_(features.nbytes // int(sys.argv[2]))
lgf.local_gram_flow(features, backend=sys.argv[1])
torch.cuda.synchronize()
"""


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="there is no compute-sanitizer")
@pytest.mark.parametrize("backend", [name for name in backends_of("local_gram_flow", "cuda") if name != "portable"])
def test_memcheck_notices_a_read_past_the_end(backend):
    def check(shorter_by: int) -> subprocess.CompletedProcess:
        command = [*under("memcheck"), sys.executable, "-P", "-c", PAST_THE_END, backend, str(shorter_by)]
        return subprocess.run(command, capture_output=True, text=True)

    right, wrong = check(1), check(2)
    assert right.returncode == 0, right.stdout + right.stderr
    assert wrong.returncode == SANITIZER_ERROR and "Invalid __global__ read" in wrong.stdout
