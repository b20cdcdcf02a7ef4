"""Relational alignment losses for video diffusion, without the Gram matrices.

    import lgf_kernels as lgf
    loss = lgf.lgf_kl_loss(student_features, [teacher_forward, teacher_backward])

Local Gram Flow with KL (SAM2VideoX), token relation distances (VideoREPA, MoAlign), patch cosine (REPA,
Align4Gen, CREPA) and point correspondence (Track4Gen) as PyTorch operators with autograd, `torch.compile`
and autocast. Start with `lgf_kl_loss`; the command `lgf doctor` reports what runs on this machine.
"""

__version__ = "0.1.0"

from .core.errors import BackendUnavailableError, OnceDifferentiableError
from .core.registry import BackendInfo, backends, use_backend
from .gram_flow.api import (
    LocalGramFlowKLLoss,
    LocalGramFlowKLLossFromLogits,
    lgf_kl_loss,
    lgf_kl_loss_from_logits,
    local_gram_flow,
    local_window_mask,
)
from .patch_cosine.api import PatchCosineLoss, crepa_frame_weight, patch_cosine_loss

# The function takes the place of the subpackage of its name among the attributes; `from` and importlib find both.
from .point_correspondence.api import PointCorrespondenceLoss, point_correspondence, point_correspondence_loss
from .token_relation.api import TokenRelationLoss, moalign_pair_weight, token_relation_loss, videorepa_pair_weight

__all__ = [
    "BackendInfo",
    "BackendUnavailableError",
    "LocalGramFlowKLLoss",
    "LocalGramFlowKLLossFromLogits",
    "OnceDifferentiableError",
    "PatchCosineLoss",
    "PointCorrespondenceLoss",
    "TokenRelationLoss",
    "__version__",
    "backends",
    "crepa_frame_weight",
    "lgf_kl_loss",
    "lgf_kl_loss_from_logits",
    "local_gram_flow",
    "local_window_mask",
    "moalign_pair_weight",
    "patch_cosine_loss",
    "point_correspondence",
    "point_correspondence_loss",
    "token_relation_loss",
    "use_backend",
    "videorepa_pair_weight",
]
