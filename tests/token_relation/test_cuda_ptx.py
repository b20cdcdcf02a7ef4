"""The CUDA kernels of token relations as nvcc compiles them, on the model of a GPU (tests/models/ptx), against the oracle."""

import pytest
import torch

from .cuda_inputs import against_reference, inputs


@pytest.mark.parametrize("architecture", ["80", "90a"])
def test_tensor_cores(nvcc_model, architecture):
    import time
    t=time.process_time()
    launcher = nvcc_model(architecture)
    against_reference(*inputs((1, 2, 150, 72), 24, torch.bfloat16))
    print(launcher.kernels, time.process_time()-t)
    t=time.process_time()
    against_reference(*inputs((1, 2, 150, 72), 24, torch.bfloat16))
    print(launcher.kernels, time.process_time()-t)
    t=time.process_time()
    against_reference(*inputs((1, 3, 30, 16), 8, torch.bfloat16))
    print(launcher.kernels, time.process_time()-t)
