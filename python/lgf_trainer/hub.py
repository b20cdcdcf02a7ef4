"""Loading models of the Hugging Face hub, with errors that a user can read."""

from typing import Any, TypeVar

from .errors import TrainerError

Model = TypeVar("Model")


def pretrained(kind: type[Model], name: str, **options: Any) -> Model:
    """`kind.from_pretrained(name, **options)`.

    Raises:
        TrainerError: there is no such model, or no network and no copy of it in the cache of the hub.
    """
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainerError(
            f"{kind.__name__} cannot be loaded from {name}: {reason}. "
            "Give a folder, or a name on the Hugging Face hub and a network"
        ) from error
