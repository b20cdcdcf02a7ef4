"""The `sam2` package's model with the weights of transformers' tiny one, so that the two can be compared."""

import re

import torch
from lgf_trainer.testing import TEACHER_CHANNELS, TEACHER_SIZE

#: Names in transformers -> names in the sam2 package, applied one after the other.
NAMES = [
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    (r"^object_pointer_proj", "obj_ptr_proj"),
    (r"^temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
    (r"^shared_image_embedding.positional_embedding", "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^vision_encoder.backbone.patch_embed.projection", "image_encoder.trunk.patch_embed.proj"),
    (r"^vision_encoder.backbone", "image_encoder.trunk"),
    (r"^vision_encoder.neck.convs.(\d)", r"image_encoder.neck.convs.\1.conv"),
    (r"^prompt_encoder.mask_embed.conv1", "prompt_encoder.mask_downscaling.0"),
    (r"^prompt_encoder.mask_embed.layer_norm1", "prompt_encoder.mask_downscaling.1"),
    (r"^prompt_encoder.mask_embed.conv2", "prompt_encoder.mask_downscaling.3"),
    (r"^prompt_encoder.mask_embed.layer_norm2", "prompt_encoder.mask_downscaling.4"),
    (r"^prompt_encoder.mask_embed.conv3", "prompt_encoder.mask_downscaling.6"),
    (r"^(prompt_encoder|mask_decoder)", r"sam_\1"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"(mlps.\d|head|ptr_proj)\.layers\.0", r"\1.layers.1"),
    (r"(mlps.\d|head|ptr_proj)\.proj_in", r"\1.layers.0"),
    (r"(mlps.\d|head|ptr_proj)\.proj_out", r"\1.layers.2"),
    (r"mlp\.proj_in", "mlp.layers.0"),
    (r"mlp\.proj_out", "mlp.layers.1"),
    (r"o_proj", "out_proj"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"mask_downsampler.final_conv", "mask_downsampler.encoder.12"),
    (r"mask_downsampler.layers.(\d).(conv|layer_norm)", lambda m: f"mask_downsampler.encoder.{3 * int(m[1]) + (m[2] != 'conv')}"),
    (r"memory_encoder.feature_projection", "memory_encoder.pix_feat_proj"),
    (r"memory_encoder.projection", "memory_encoder.out_proj"),
    (r"memory_fuser", "fuser"),
    (r"depthwise_conv", "dwconv"),
    (r"pointwise_conv", "pwconv"),
    (r"scale$", "gamma"),
    (r"layer_norm(\d?)", r"norm\1"),
]  # fmt: skip


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {}
    for name, tensor in state.items():
        if name == "prompt_encoder.shared_embedding.positional_embedding":
            continue  # the same as shared_image_embedding's
        if name == "prompt_encoder.point_embed.weight":
            result |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(tensor)}
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def make_twin(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A SAM2Base with the sizes of `make_tiny_teacher` and the options of SAM 2.1, holding these weights."""
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.modeling.sam2_base import SAM2Base

    width, side = TEACHER_CHANNELS, TEACHER_SIZE // 16
    attention = {"rope_theta": 10000.0, "feat_sizes": [side, side], "embedding_dim": width, "num_heads": 1}
    model = SAM2Base(
        image_encoder=ImageEncoder(
            Hiera(
                embed_dim=16, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_spec=(8, 4, 4, 2),
                window_pos_embed_bkg_spatial_size=(2, 2),
            ),
            FpnNeck(
                PositionEmbeddingSine(width, normalize=True), width, [128, 64, 32, 16],
                fpn_top_down_levels=[2, 3], fpn_interp_model="nearest",
            ),
            scalp=1,
        ),
        memory_attention=MemoryAttention(
            width, True,
            MemoryAttentionLayer(
                "relu", RoPEAttention(rope_k_repeat=True, kv_in_dim=64, **attention), width, 32, 0.1,
                pos_enc_at_attn=False, pos_enc_at_cross_attn_keys=True, pos_enc_at_cross_attn_queries=False,
                self_attention=RoPEAttention(**attention),
            ),
            num_layers=1,
        ),
        memory_encoder=MemoryEncoder(
            64, MaskDownSampler(width, 3, 2, 1), Fuser(CXBlock(width, 7, 3), 1), PositionEmbeddingSine(64, normalize=True),
            in_dim=width,
        ),
        image_size=TEACHER_SIZE, sigmoid_scale_for_mem_enc=20.0, sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True, directly_add_no_mem_embed=True, no_obj_embed_spatial=True,
        use_high_res_features_in_sam=True, multimask_output_in_sam=True, iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True, proj_tpos_enc_in_obj_ptrs=True, use_signed_tpos_enc_to_obj_ptrs=True,
        only_obj_ptrs_in_the_past_for_eval=True, pred_obj_scores=True, pred_obj_scores_mlp=True, fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True, use_multimask_token_for_obj_ptr=True, multimask_min_pt_num=0,
        use_mlp_for_obj_ptr_proj=True,
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": True, "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    )  # fmt: skip
    model.load_state_dict(renamed(state))
    return model.eval()
