"""Families of video models, and the GPU memory of a training run, counted from the models' shapes: no weights, no GPU.

    python benchmarks/tools/recipe_memory.py            with each family's own recipe of the paper
    python benchmarks/tools/recipe_memory.py RECIPE     with one for all

Counted for one window of the model's own size
in a forward pass, in bfloat16, with gradient checkpointing and an attention that keeps no matrix: the weights; float32
weights, gradients and both moments of AdamW of what is trained; the input of every block; and what the backward pass of one
block, or of the projector, keeps for its gradient. Not counted: what the blocks share, casts, temporary buffers of kernels,
the allocator's losses, CUDA itself.
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
from lgf_bench.released import models, window
from lgf_bench.table import PAGE, tabulated
from lgf_trainer.generators.base import Generator
from lgf_trainer.generators.lora import add_lora
from lgf_trainer.objectives.base import make_objective
from lgf_trainer.runtime.recipe import Recipe, read_recipe
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def main(arguments: list[str]) -> int:
    """Run `python benchmarks/tools/recipe_memory.py [RECIPE]`."""
    tyro.cli(_print, prog="python benchmarks/tools/recipe_memory.py", description=__doc__, args=arguments)
    return 0


def _print(recipe: tyro.conf.Positional[str | None] = None, /) -> None:
    """Print both tables.

    Args:
        recipe: A YAML file, or one of those that come with the package.
    """
    for printed in tables(recipe):
        print(printed, end="\n\n")


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


def count(recipe: Recipe, generator: Generator) -> Memory:
    """Return the memory of a recipe for a model."""
    hidden, _, conditions, *_ = window(generator, torch.bfloat16, "meta")
    grid = generator.token_grid(generator.frames, generator.height, generator.width)
    with torch.device("meta"):
        transformer = generator.empty_transformer().bfloat16().requires_grad_(False)
        frozen = _bytes([*transformer.parameters(), *transformer.buffers()])
        add_lora(transformer, recipe.model)
        transformer.bfloat16()  # as autocast computes
        projector = _projector(recipe, generator, grid)
        trained = sum(p.numel() for m in (transformer, projector) for p in m.parameters() if p.requires_grad)
        calls = _calls(generator, transformer, hidden.bfloat16(), conditions)
        kinds = {type(call.block): call for call in calls}.values()
        features = torch.empty(1, *grid, generator.channels, dtype=torch.bfloat16, requires_grad=True)
        working = max(_kept(call.run) for call in kinds) + _kept(lambda: projector(features))
    return Memory(
        trained=trained,
        weights=frozen,
        training=4 * 4 * trained,
        inputs=sum(_bytes(call.own) for call in calls),
        working=working,
    )


@dataclass(frozen=True)
class Call:
    """A call of a block; `own` are the inputs that it does not share with other blocks."""

    block: nn.Module
    args: tuple
    named: dict[str, object]
    own: list[Tensor]

    def run(self) -> object:
        """Repeat the call."""
        return self.block(*self.args, **self.named)


def _calls(generator: Generator, transformer: nn.Module, hidden: Tensor, conditions: dict[str, object]) -> list[Call]:
    """Return the calls of all blocks in a forward pass; their own inputs need gradients."""
    seen, shared = [], {}
    blocks = generator.blocks(transformer)
    handles = [block.register_forward_pre_hook(lambda *call: seen.append(call), with_kwargs=True) for block in blocks]
    with _AttentionWithoutMatrix(), torch.no_grad():
        transformer(hidden, **conditions)
    for handle in handles:
        handle.remove()
    for _, args, named in seen:
        for value in (*args, *named.values()):
            shared[id(value)] = shared.get(id(value), 0) + 1

    def own(value: object) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and shared[id(value)] == 1

    return [
        Call(block, args, named, [value.requires_grad_() for value in (*args, *named.values()) if own(value)])
        for block, args, named in seen
    ]


def tables(recipe: str | None = None, shards: int = 8) -> tuple[str, str]:
    """Return the families and the memory of their models, as Markdown; `recipe`: one for all, or each family's own."""
    families, memories = [], []
    for name, generator in models():
        size = generator.frames, generator.height, generator.width
        memory = count(read_recipe(recipe or generator.own_recipe), generator)
        grid = generator.token_grid(*size)
        families.append({
            "model": name,
            "window": f"{' x '.join(map(str, size))}, {generator.fps:g}/s",
            "tokens": f"{' x '.join(map(str, grid))} = {grid[0] * grid[1] * grid[2]:,}",
            "block": f"{block_at_depth(generator.layers)} of {generator.layers}",
            "target": target(generator),
            "recipe": f"`{generator.own_recipe}`",
            "GiB": f"{memory.total() / 2**30:.0f}",
            f"GiB over {shards}": f"{memory.total(shards) / 2**30:.0f}",
        })  # fmt: skip
        bytes_of = {
            "frozen weights": memory.weights,
            "trained: weights, gradients, AdamW": memory.training,
            "inputs of the blocks": memory.inputs,
            "a block and the projector": memory.working,
            "**sum**": memory.total(),
            f"**sharded over {shards}**": memory.total(shards),
        }
        cells = {title: f"{number / 2**30:.1f}" for title, number in bytes_of.items()}
        memories.append({"GiB": name, "trained parameters": f"{memory.trained / 1e6:.1f} M"} | cells)
    return tabulated(families, PAGE), tabulated(memories, PAGE)


def block_at_depth(layers: int) -> int:
    """Return the block that is as deep as the paper's, the 25th of 42."""
    return round(25 / 42 * layers) - 1


def target(generator: Generator) -> str:
    """Return what the model predicts, and how its noise levels are shifted."""
    if generator.shift is None:
        return "velocity"
    return f"flow, shift {f'{generator.shift:g}' if generator.shift else 'by tokens'}"


def _projector(recipe: Recipe, generator: Generator, grid: tuple[int, int, int]) -> nn.Module:
    objective = make_objective(recipe.alignment, {"window": 7, "similarity": "cosine", "boundary": "exclude"})
    if objective is None:
        return nn.Identity()
    shapes = {name: torch.Size((generator.frames - 1, *grid[1:], 49)) for name in objective.tensors}
    return objective.make_projector(recipe.projector, generator.channels, shapes).bfloat16()


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
        options = options or {}
        if function is functional.scaled_dot_product_attention:
            named = (options[name] for name in ("query", "key", "value") if name in options)
            return _Attention.apply(*(*arguments, *named)[:3])
        return function(*arguments, **options)
