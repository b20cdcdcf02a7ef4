"""Context parallelism: each sample's tokens spread over a group of processes, by the plans of diffusers.

Every process of a group sees the same samples. Its blocks hold a part of the tokens, and attention exchanges heads for tokens
(Ulysses), so the gradients of weights are partial: summed over the group they are those of one process. DDP and FSDP take
means over all processes, so the gradient of the prediction is multiplied by the size of the group. The aligned block's
features are gathered; the backward of that sums over the group, which is the same factor, and every process computes the
projector and the loss whole.
"""

import itertools
from functools import partial

import torch.distributed as dist
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from lgf_kernels.distributed import gather


def unsupported_reason(transformer: nn.Module, ranks: int, tokens: int) -> str | None:
    """Return why the tokens of a transformer cannot be spread over so many processes, or None."""
    name, heads = type(transformer).__name__, transformer.config.num_attention_heads
    plan = getattr(transformer, "_cp_plan", None)
    if plan is None:
        return (
            f"diffusers has no plan for {name}, whose attention would silently be computed within each part alone. Wan2.1 can "
            "be spread"
        )
    if "hidden_states" in plan.get("", {}):
        return (
            f"diffusers' plan for {name} splits the model's inputs, noise levels of tokens not among them, and not those of the "
            "blocks. Wan2.1 can be spread"
        )
    if heads % ranks:
        return f"{heads} attention heads cannot be divided among {ranks} processes"
    if tokens % ranks:
        return f"{tokens} tokens cannot be divided among {ranks} processes. Other frames or sizes have other numbers of tokens"
    return None


class Context:
    """A group of `ranks` processes that share each sample; successive ones of all processes are together."""

    def __init__(self, ranks: int, device: str):
        self.ranks = ranks
        self.mesh = init_device_mesh(
            device, (dist.get_world_size() // ranks, 1, ranks), mesh_dim_names=("data", "ring", "ulysses")
        )
        self.group = self.mesh["ulysses"].get_group()

    def spread(self, transformer: nn.Module) -> None:
        """Let a transformer hold a part of the tokens in its blocks, and put out all of them.

        This is diffusers' `enable_parallelism`, which insists on a GPU.
        """
        settings = ContextParallelConfig(ulysses_degree=self.ranks, mesh=self.mesh)
        parallel = ParallelConfig(context_parallel_config=settings)
        device = next(transformer.parameters()).device
        parallel.setup(dist.get_rank(), dist.get_world_size(), device, mesh=self.mesh)
        for module in transformer.modules():
            if hasattr(getattr(module, "processor", None), "_parallel_config"):
                module.processor._parallel_config = parallel
        plan = {name: part for name, part in transformer._cp_plan.items() if name}
        apply_context_parallel(transformer, settings, plan)

    def whole(self, features: Tensor) -> Tensor:
        """Return the tokens of all processes of the group (B, tokens, C), from those of this one."""
        tokens = features.shape[1]
        bounds = list(itertools.accumulate([tokens] * self.ranks, initial=0))
        return gather(features, 1, bounds, self.group)

    def scaled(self, prediction: Tensor) -> Tensor:
        """Multiply the prediction's gradient by the number of processes, of which each passes on its own part of it."""
        if prediction.requires_grad:
            prediction.register_hook(partial(Tensor.mul, other=self.ranks))
        return prediction
