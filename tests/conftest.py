"""What every test starts from: a fixed seed, and uninitialised memory full of NaN so that an unwritten output shows."""

import os

# cuBLAS is deterministic only with a workspace of fixed size, and reads this when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch fills what `torch.empty` returns with NaN while deterministic algorithms are on."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
