"""The oracle: every formula of the losses written out literally, in eager PyTorch, on any device and in float64 too.

Nothing here is fast and everything here is differentiable. The other backends are tested against these functions;
none of them calls one.
"""

from .lgf_kl import lgf_kl
from .local_gram_flow import local_gram_flow
from .token_relation import token_relation

__all__ = ["lgf_kl", "local_gram_flow", "token_relation"]
