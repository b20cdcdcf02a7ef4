"""The losses where a video's tokens are spread over processes: context parallel training.

    from lgf_kernels import distributed as lgf_dist
    shards = lgf_dist.Frames.even(grid=(13, 30, 45), ranks=4)
    share = lgf_dist.sharded_lgf_kl_loss(student, teacher_logits, shards)
    share.backward()

Every process holds a part of the student and gets its share of the loss: the sum of all shares is the loss of one process
with the whole video, and so is the sum of the gradients of weights that all processes have. `torch.distributed` alone is
needed, with gloo on CPUs and NCCL on GPUs.
"""

from .exchange import gather, halo_exchange
from .gram_flow import sharded_lgf_kl_loss
from .patch_cosine import sharded_patch_cosine_loss
from .point_correspondence import sharded_point_correspondence_loss
from .shards import Frames, Rows, Shards, Tokens
from .token_relation import sharded_token_relation_loss

__all__ = [
    "Frames",
    "Rows",
    "Shards",
    "Tokens",
    "gather",
    "halo_exchange",
    "sharded_lgf_kl_loss",
    "sharded_patch_cosine_loss",
    "sharded_point_correspondence_loss",
    "sharded_token_relation_loss",
]
