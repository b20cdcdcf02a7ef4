"""CONTRIBUTING's steps to a new operator, followed to the letter in a copy of the library."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRY = """
import torch, lgf_kernels as lgf
from lgf_kernels.core.registry import names_of_able
assert lgf.__file__.startswith({place!r})
assert names_of_able("frame_difference") == ["portable", "reference"]
f = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
results = []
for backend in ("portable", "reference", None):
    loss = lgf.frame_difference_loss(f, backend=backend)
    results.append((loss, *torch.autograd.grad(loss, f)))
for value, gradient in results[1:]:
    torch.testing.assert_close(value, results[0][0])
    torch.testing.assert_close(gradient, results[0][1])
expected = sum(((f[b, t + 1] - f[b, t]) ** 2).sum() for b in range(2) for t in range(2)) / (2 * 2 * 4 * 5 * 6)
torch.testing.assert_close(results[0][0], expected)
compiled = torch.compile(lgf.frame_difference_loss, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(f), expected)
torch.testing.assert_close(torch.vmap(lgf.frame_difference_loss)(f[None].detach()), expected[None].detach())
try:
    lgf.frame_difference_loss(f, backend="native")
except lgf.BackendUnavailableError as error:
    assert "frame_difference has no native kernel for cpu tensors" in str(error)
assert "frame_difference on cpu" in lgf.backends()[2].reason
print("right")
"""


def files_of_the_steps() -> dict[str, str]:
    """Each file that CONTRIBUTING shows: its name stands before the block of code."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return dict(re.findall(r"`(lgf_kernels/[\w/]+\.py)`:\n\n```python\n(.*?)```", text, re.S))


def test_a_made_up_operator_by_the_steps(tmp_path):
    files = files_of_the_steps()
    library = tmp_path / "lgf_kernels"
    shutil.copytree(ROOT / "lgf_kernels", library, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    assert len(files) == 5
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        added = path.read_text() if path.exists() else ""  # the public name is added to what is there
        path.write_text(added + content)
    code = TRY.format(place=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stdout == "right\n", done.stderr
