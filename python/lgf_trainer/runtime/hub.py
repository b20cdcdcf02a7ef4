"""Models of the Hugging Face hub, with errors of one line."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from .errors import TrainerError, explained
from .progress import bars_only_on_terminals

Model = TypeVar("Model")


def pretrained(kind: type[Model], name: str, types: Sequence[str] = (), **options: Any) -> Model:
    """Call `kind.from_pretrained(name, **options)`, with `subfolder` among the options if need be.

    `types` are the model types, as transformers calls them, that `name` may hold; none: not asked. transformers itself takes
    any model for any other, and fills what that lacks with random weights.

    Raises:
        TrainerError: there is no such model, or no network and no copy of it in the cache of the hub, or it is of another type,
            or the files of its tokenizer are missing.
    """
    from transformers import AutoConfig

    place = "/".join([name, options["subfolder"]] if "subfolder" in options else [name])
    way_out = "Give a folder, or a name on the Hugging Face hub and a network"
    what = f"{kind.__name__} cannot be loaded from {place}"
    with explained(what, OSError, ValueError, way_out=way_out), bars_only_on_terminals():
        if not types or (found := AutoConfig.from_pretrained(name).model_type) in types:
            return _with_words(kind.from_pretrained(name, **options))
    raise TrainerError(f"{name} holds a model of type {found}, and one of type {' or '.join(types)} is needed")


def _with_words(model: Model) -> Model:
    """Return the model, if its tokenizer has words: without files, transformers makes one of special tokens and a space."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None and len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)) < 2:
        raise ValueError("its tokenizer knows no words, so files of it are missing")
    return model


def frozen(model: nn.Module, device: torch.device) -> nn.Module:
    """Put a model on a device, in evaluation mode and without gradients.

    On a CPU its weights are copied: loaders may leave them in a mapped file at odd addresses, once here and once there,
    and the last bits of sums depend on that.
    """
    model.eval().requires_grad_(False).to(device)
    if device.type == "cpu":
        for tensor in chain(model.parameters(), model.buffers()):
            tensor.data = tensor.data.clone()
    return model
