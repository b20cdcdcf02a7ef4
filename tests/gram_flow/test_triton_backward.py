"""Every row of the tables of the Triton backward of Local Gram Flow, in the interpreter."""

import pytest
import torch
from support.numerics import against_reference, features
from support.pairs import every_value

import lgf_kernels as lgf
from lgf_kernels.gram_flow import triton_configs as configs

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("with a GPU the kernels are not interpreted; tests/gpu runs them", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("overflow_checks")

ROWS = [row for rows in (*configs.BACKWARD.values(), *configs.BACKWARD_TWO_PASSES.values()) for row in rows]
# The interpreter has no warps; blocks of 16 make for several of them.
ROWS = sorted({row._replace(BLOCK_C=16, num_warps=4, num_stages=1) for row in ROWS})


@every_value(row=ROWS, similarity=("cosine", "dot"), direction=("forward", "backward"))
def test_backward_rows(monkeypatch, row, similarity, direction):
    """With 20 channels in blocks of 16 the products of cosine similarity are made twice."""
    monkeypatch.setattr(configs, "backward", lambda *_: [row])
    student, teacher = features(1, 2, 9, 9, 20), features(1, 2, 9, 9, 7)
    options = dict(similarity=similarity, direction=direction, temperature=3.0)
    against_reference(lgf.lgf_kl_loss, student, [teacher], backend="triton", **options)
