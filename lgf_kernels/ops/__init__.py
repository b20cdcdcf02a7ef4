"""The operators as autograd and torch.compile see them: schema, fake, autograd, and the choice of a backend.

Importing this package registers them under `torch.ops.lgf`. There is no arithmetic here.
"""

from .lgf_kl import lgf_kl
from .local_gram_flow import local_gram_flow
from .token_relation import token_relation

__all__ = ["lgf_kl", "local_gram_flow", "token_relation"]
