"""Check of an installed wheel, run by its own Python: the kernels run, are right, and share torch's OpenMP.

python tests/support/wheel_smoke.py
"""

import re
from pathlib import Path

import torch

import lgf_kernels as lgf


def losses(backend: str, features: torch.Tensor, teacher: torch.Tensor) -> list[torch.Tensor]:
    """Return loss and gradient of each family that the CPU module has."""
    queries = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 3.0, 4.0]]])
    tracks, visible = torch.ones(1, 2, 3, 2), torch.ones(1, 2, 3)
    results = []
    for loss in (
        lgf.lgf_kl_loss(features, teacher, backend=backend),
        lgf.patch_cosine_loss(features, teacher, backend=backend),
        lgf.point_correspondence_loss(features, queries, tracks, visible, backend=backend),
    ):
        results += [loss, *torch.autograd.grad(loss, features)]
    return results


def mapped_openmp() -> set[str]:
    """Return the files of OpenMP runtimes in this process."""
    maps = Path("/proc/self/maps").read_text()
    return {str(Path(path).resolve()) for path in re.findall(r"(/\S*lib(?:gomp|omp|iomp5)[-.\w]*\.so\S*)", maps)}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    features, teacher = torch.randn(1, 3, 6, 7, 32, requires_grad=True), torch.randn(1, 3, 6, 7, 32)
    for here, there in zip(*(losses(name, features, teacher) for name in ("native", "reference")), strict=True):
        torch.testing.assert_close(here, there)
    openmp = mapped_openmp()
    assert len(openmp) == 1, f"one OpenMP is expected, {len(openmp)} are mapped: {sorted(openmp)}"
    print(f"right: {lgf.__file__}, OpenMP {openmp.pop()}")


if __name__ == "__main__":
    main()
