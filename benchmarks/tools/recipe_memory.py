"""GPU memory of a training run, counted from the models' shapes: no weights, no GPU.

    python benchmarks/tools/recipe_memory.py [RECIPE]

Counted for one window of 49 frames of 480 x 720 pixels in a forward pass, in bfloat16, with gradient checkpointing and
an attention that keeps no matrix: the weights; float32 weights, gradients and both moments of AdamW of what is trained;
the input of every block; and what the backward pass of one block, or of the projector, keeps for its gradient. Not
counted: casts, temporary buffers of kernels, the allocator's losses, CUDA itself.
"""

import here  # noqa: F401  # isort: skip

if __name__ == "__main__":  # before the imports, so that an error of one line names a missing package
    import sys

    import lgf_cli

    sys.exit(lgf_cli.run("recipe_memory.py", "recipe_memory", sys.argv[1:], '"lgf-kernels[bench,train]"'))

from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from diffusers import CogVideoXTransformer3DModel
from lgf_bench.table import PAGE, tabulated
from lgf_trainer.objectives.base import make_objective
from lgf_trainer.runtime.recipe import Recipe, read_recipe
from peft import LoraConfig
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FRAMES, HEIGHT, WIDTH = 49, 480, 720

#: Name -> what differs from the defaults of diffusers, which are those of CogVideoX-2B.
MODELS = {
    "CogVideoX-2B": {},
    "CogVideoX-5B": {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
    "CogVideoX-5B-I2V": {
        "num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True, "in_channels": 32,
        "use_learned_positional_embeddings": True,
    },
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run `python benchmarks/tools/recipe_memory.py [RECIPE]`."""
    tyro.cli(_print, prog="python benchmarks/tools/recipe_memory.py", description=__doc__, args=arguments)
    return 0


def _print(recipe: tyro.conf.Positional[str] = "sam2videox", /) -> None:
    """Print the table.

    Args:
        recipe: A YAML file, or one of those that come with the package.
    """
    print(table(read_recipe(recipe)))


@dataclass(frozen=True)
class Memory:
    """Bytes, but for `trained`, which counts parameters."""

    trained: int
    weights: int
    training: int
    inputs: int
    working: int

    def total(self, shards: int = 1) -> int:
        """Return the bytes on each of `shards` GPUs that share the weights and what belongs to them."""
        return (self.weights + self.training) // shards + self.inputs + self.working


def count(recipe: Recipe, **config: object) -> Memory:
    """Return the memory of a recipe for a transformer of a given configuration."""
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**config).bfloat16().requires_grad_(False)
        frozen = _bytes([*transformer.parameters(), *transformer.buffers()])
        transformer.add_adapter(LoraConfig(r=recipe.model.rank, target_modules=list(recipe.model.targets)))
        transformer.bfloat16()  # as autocast computes
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        grid = ((FRAMES - 1) // 4 + 1, HEIGHT // 16, WIDTH // 16)
        projector = _projector(recipe, width, grid)
        trained = sum(p.numel() for m in (transformer, projector) for p in m.parameters() if p.requires_grad)

        hidden = torch.empty(1, grid[0] * grid[1] * grid[2], width, dtype=torch.bfloat16, requires_grad=True)
        text = torch.empty(1, transformer.config.max_text_seq_length, width, dtype=torch.bfloat16, requires_grad=True)
        time = torch.empty(1, transformer.config.time_embed_dim, dtype=torch.bfloat16)
        block = _kept(lambda: transformer.transformer_blocks[0](hidden, text, time))
        head = _kept(lambda: projector(hidden.unflatten(1, grid)))
    return Memory(
        trained=trained,
        weights=frozen,
        training=4 * 4 * trained,
        inputs=_bytes([hidden, text]) * len(transformer.transformer_blocks),
        working=block + head,
    )


def table(recipe: Recipe, shards: int = 8) -> str:
    """Return the memory of the models of `MODELS`, as Markdown."""
    rows = []
    for name, config in MODELS.items():
        memory = count(recipe, **config)
        bytes_of = {
            "frozen weights": memory.weights,
            "trained: weights, gradients, AdamW": memory.training,
            "inputs of the blocks": memory.inputs,
            "a block and the projector": memory.working,
            "**sum**": memory.total(),
            f"**sharded over {shards}**": memory.total(shards),
        }
        cells = {title: f"{number / 2**30:.1f}" for title, number in bytes_of.items()}
        rows.append({"GiB": name, "trained parameters": f"{memory.trained / 1e6:.1f} M"} | cells)
    return tabulated(rows, PAGE)


def _projector(recipe: Recipe, width: int, grid: tuple[int, int, int]) -> nn.Module:
    objective = make_objective(recipe.alignment, {"window": 7, "similarity": "cosine", "boundary": "exclude"})
    if objective is None:
        return nn.Identity()
    shapes = {name: torch.Size((FRAMES - 1, *grid[1:], 49)) for name in objective.tensors}
    return objective.make_projector(recipe.projector, width, shapes).bfloat16()


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _kept(run: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps of a forward pass, parameters aside."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            kept[id(tensor._base if tensor._base is not None else tensor)] = tensor
        return tensor

    with _AttentionWithoutMatrix(), saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return _bytes([tensor if tensor._base is None else tensor._base for tensor in kept.values()])


class _Attention(torch.autograd.Function):
    """An attention that saves what flash attention saves, and computes nothing."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], dtype=torch.float32))
        return out


class _AttentionWithoutMatrix(TorchFunctionMode):
    """A mode in which torch's attention is `_Attention`."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is functional.scaled_dot_product_attention:
            return _Attention.apply(*arguments)
        return function(*arguments, **(options or {}))
