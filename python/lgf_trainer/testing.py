"""Tiny, randomly initialised models in Hugging Face format, for the real code paths without any download.

Every function writes into `folder` what `save_pretrained` of the real model would, and draws the weights from `seed`; the
global random state is left alone.

    >>> import tempfile
    >>> from lgf_trainer.testing import make_tiny_pipeline
    >>> sorted(p.name for p in make_tiny_pipeline(tempfile.mkdtemp()).iterdir())[:3]
    ['model_index.json', 'scheduler', 'text_encoder']
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

FRAMES, HEIGHT, WIDTH = 9, 64, 96  # pixels: 3 x 8 x 12 latents, 3 x 4 x 6 tokens
LATENT_CHANNELS = 4
TEXT_TOKENS, TEXT_WIDTH = 16, 16
TEACHER_SIZE, TEACHER_CHANNELS = 128, 128  # a side of 128 pixels: memory features of 8 x 8 tokens
DINO_CHANNELS = 32
CLIP_WIDTH = 16
CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")
#: Words of HunyuanVideo's templates; one is two, so that there are as many as Llama 3 has.
TEMPLATE_WORDS = r"<\|?\w+\|?>|\n\n|\n| detail| ?\w+|[^\w\s]"


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Draw random numbers from a seed, and leave the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def make_tiny_pipeline(folder: str | PathLike, *, image_to_video: bool = True, seed: int = 0) -> Path:
    """Write a CogVideoX pipeline of about a hundred thousand random weights.

    It has all parts of the real one (tokenizer, T5, VAE, transformer, scheduler) and its proportions: 8-fold spatial
    and 4-fold temporal compression, rotary embeddings, and for image-to-video learned positions and the image's latents
    as further input channels. It is made for videos of 9 frames of 64 x 96 pixels.

    Args:
        image_to_video: like CogVideoX-5B-I2V, else like CogVideoX-2B.
    """
    with drawn_from(seed):
        vae = diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=LATENT_CHANNELS, layers_per_block=1, norm_num_groups=2,
            sample_height=HEIGHT, sample_width=WIDTH, scaling_factor=0.7 if image_to_video else 1.15258426,
        )  # fmt: skip
        transformer = diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, num_layers=3, time_embed_dim=16,
            in_channels=LATENT_CHANNELS * (2 if image_to_video else 1), out_channels=LATENT_CHANNELS,
            text_embed_dim=TEXT_WIDTH, max_text_seq_length=TEXT_TOKENS,
            sample_frames=FRAMES, sample_height=HEIGHT // 8, sample_width=WIDTH // 8,
            use_rotary_positional_embeddings=image_to_video, use_learned_positional_embeddings=image_to_video,
        )  # fmt: skip
        _wake(transformer)
        text_encoder = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=256, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
    pipeline = diffusers.CogVideoXImageToVideoPipeline if image_to_video else diffusers.CogVideoXPipeline
    pipeline(
        tokenizer=_tokenizer(),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", snr_shift_scale=1.0 if image_to_video else 3.0, rescale_betas_zero_snr=True
        ),
    ).save_pretrained(str(folder))
    return Path(folder)


def make_tiny_wan(folder: str | PathLike, *, image_to_video: bool = False, seed: int = 0) -> Path:
    """Write a Wan2.1 pipeline of some hundred thousand random weights.

    It has all parts of the real one (tokenizer, UMT5, VAE, transformer, scheduler) and its proportions; for image-to-video
    also CLIP, and the mask and the image's latents as further input channels. Nothing in such a pipeline says for which size
    it is made: extract and sample with 9 frames of 64 x 96 pixels.

    Args:
        image_to_video: like Wan2.1-I2V-14B, else like Wan2.1-T2V-1.3B.
    """
    channels, heads, width = LATENT_CHANNELS, 2, 12
    with drawn_from(seed):
        vae = diffusers.AutoencoderKLWan(
            base_dim=8, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.0, 2.0],
        )  # fmt: skip
        transformer = diffusers.WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=width, num_layers=3, freq_dim=32, ffn_dim=32,
            in_channels=2 * channels + 4 if image_to_video else channels, out_channels=channels, text_dim=TEXT_WIDTH,
            image_dim=CLIP_WIDTH if image_to_video else None, added_kv_proj_dim=heads * width if image_to_video else None,
        )  # fmt: skip
        nn.init.normal_(transformer.proj_out.weight, std=0.1)
        text_encoder = transformers.UMT5EncoderModel(
            transformers.UMT5Config(vocab_size=256, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
        clip = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=CLIP_WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                image_size=32, patch_size=8,
            )
        )  # fmt: skip
    parts = {"image_encoder": clip.eval(), "image_processor": transformers.CLIPImageProcessor(size=32, crop_size=32)}
    (diffusers.WanImageToVideoPipeline if image_to_video else diffusers.WanPipeline)(
        tokenizer=_tokenizer(512),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        **(parts if image_to_video else {}),
    ).save_pretrained(str(folder))
    return Path(folder)


def make_tiny_hunyuan(folder: str | PathLike, *, image_to_video: bool = False, seed: int = 0) -> Path:
    """Write a HunyuanVideo pipeline of some hundred thousand random weights.

    It has all parts of the real one (two tokenizers, Llama, CLIP, VAE, transformer, scheduler) and its proportions; for
    image-to-video LLaVA, and the image's latents and a mask as further input channels. Nothing in such a pipeline says for
    which size it is made: extract and sample with 9 frames of 64 x 96 pixels.

    Args:
        image_to_video: like HunyuanVideo-I2V-33ch, else like HunyuanVideo.
    """
    channels, tokenizer = LATENT_CHANNELS, _template_tokenizer()
    llama = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=2048, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    letters = _letters()
    words = {
        word: number for number, word in enumerate([*letters, *(f"{letter}</w>" for letter in letters), *CLIP_ENDS])
    }
    clip = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=CLIP_WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=words[CLIP_ENDS[0]], eos_token_id=words[CLIP_ENDS[1]],
    )  # fmt: skip
    with drawn_from(seed):
        vae = diffusers.AutoencoderKLHunyuanVideo(
            block_out_channels=(8, 8, 8, 8), latent_channels=channels, layers_per_block=1, norm_num_groups=2
        )
        transformer = diffusers.HunyuanVideoTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, rope_axes_dim=(4, 4, 4), num_layers=1, num_single_layers=2,
            num_refiner_layers=1, in_channels=2 * channels + 1 if image_to_video else channels, out_channels=channels,
            text_embed_dim=TEXT_WIDTH, pooled_projection_dim=CLIP_WIDTH, guidance_embeds=not image_to_video,
            image_condition_type="latent_concat" if image_to_video else None,
        )  # fmt: skip
        if image_to_video:
            text_encoder = transformers.LlavaForConditionalGeneration(_tiny_llava(llama, tokenizer))
        else:
            text_encoder = transformers.LlamaModel(llama)
        text_encoder_2 = transformers.CLIPTextModel(clip)
    pipeline = diffusers.HunyuanVideoImageToVideoPipeline if image_to_video else diffusers.HunyuanVideoPipeline
    pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        tokenizer_2=transformers.CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
        text_encoder_2=text_encoder_2.eval(),
        vae=vae.eval(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        **({"image_processor": transformers.CLIPImageProcessor(size=48, crop_size=48)} if image_to_video else {}),
    ).save_pretrained(str(folder))
    return Path(folder)


def make_tiny_ltx(folder: str | PathLike, *, image_to_video: bool = False, seed: int = 0) -> Path:
    """Write an LTX-Video pipeline of some hundred thousand random weights.

    It has all parts of the real one (tokenizer, T5, VAE, transformer, scheduler), but half its compression, so that its
    tokens are those of the other tiny models. Nothing in such a pipeline says for which size it is made: extract and sample
    with 9 frames of 64 x 96 pixels.

    Args:
        image_to_video: the weights are the same, and the pipeline is the one that takes an image.
    """
    channels = LATENT_CHANNELS
    blocks = {
        "block_out_channels": (8, 8, 8),
        "spatio_temporal_scaling": (True, True, False),
        "layers_per_block": (1,) * 4,
    }
    with drawn_from(seed):
        vae = diffusers.AutoencoderKLLTXVideo(
            latent_channels=channels, down_block_types=("LTXVideoDownBlock3D",) * 3,
            **blocks, **{f"decoder_{name}": value for name, value in blocks.items()},
        )  # fmt: skip
        vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        vae.latents_std.copy_(torch.tensor([1.5, 0.8, 1.0, 2.0]))
        transformer = diffusers.LTXVideoTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, num_layers=3, in_channels=channels, out_channels=channels,
            cross_attention_dim=24, caption_channels=TEXT_WIDTH,
        )  # fmt: skip
        text_encoder = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=256, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
    (diffusers.LTXImageToVideoPipeline if image_to_video else diffusers.LTXPipeline)(
        tokenizer=_tokenizer(128),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
    ).save_pretrained(str(folder))
    return Path(folder)


def make_tiny_teacher(folder: str | PathLike, *, seed: int = 0) -> Path:
    """Write a SAM2 of about three million random weights.

    Its masks mean nothing, but always mark something, and its memory features depend on every frame before.
    """
    side, width = TEACHER_SIZE, TEACHER_CHANNELS
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 16, "image_size": [side, side],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [2, 2],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "fpn_hidden_size": width,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
    }  # fmt: skip
    config = transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": width, "image_size": side},
        # Its other sizes are fixed in the sam2 package. As a dict: some transformers read an object as a prompt encoder's.
        mask_decoder_config=transformers.Sam2VideoMaskDecoderConfig(hidden_size=width).to_dict(),
        image_size=side, memory_attention_hidden_size=width, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32, memory_attention_rope_feat_sizes=[side // 16] * 2,
        memory_encoder_hidden_size=width, mask_downsampler_embed_dim=width, memory_fuser_num_layers=1,
        memory_fuser_embed_dim=width, memory_fuser_intermediate_dim=4 * width,
    )  # fmt: skip
    with drawn_from(seed):
        model = transformers.Sam2VideoModel(config)
        _redraw(model, vectors=0.1)
        nn.init.ones_(model.mask_decoder.pred_obj_score_head.proj_out.bias)
        positions = model.shared_image_embedding.positional_embedding.detach()
        model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(positions)  # shared in SAM2
    model.save_pretrained(str(folder))
    return Path(folder)


def make_tiny_dino(folder: str | PathLike, *, kind: str = "dinov2", seed: int = 0) -> Path:
    """Write a DINO of some tens of thousands of random weights.

    Args:
        kind: dinov2, dinov2_with_registers or dinov3_vit, with their patches of 14, 14 and 16 pixels.
    """
    newest = kind == "dinov3_vit"
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=DINO_CHANNELS, num_hidden_layers=2, num_attention_heads=2, patch_size=16 if newest else 14,
        image_size=224, **({"intermediate_size": 64, "num_register_tokens": 4} if newest else {"mlp_ratio": 2}),
    )  # fmt: skip
    with drawn_from(seed):
        model = transformers.AutoModel.from_config(config)
        _redraw(model, vectors=0.5)
    model.save_pretrained(str(folder))
    return Path(folder)


def make_tiny_videomae(folder: str | PathLike, *, seed: int = 0) -> Path:
    """Write a VideoMAE of some tens of thousands of random weights, with patches of 16 pixels and tubelets of 2 frames."""
    config = transformers.VideoMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64, num_frames=4
    )
    with drawn_from(seed):
        transformers.VideoMAEModel(config).save_pretrained(str(folder))
    return Path(folder)


def make_tiny_raft(file: str | PathLike, *, seed: int = 0) -> Path:
    """Write random weights of RAFT's small network, of which torchvision knows no smaller one: a million.

    Raises:
        ImportError: torchvision is not installed.
    """
    from torchvision.models.optical_flow import raft_small

    with drawn_from(seed):
        save_file(raft_small().state_dict(), file)
    return Path(file)


def make_tiny_detector(folder: str | PathLike, *, seed: int = 0) -> Path:
    """Write a GroundingDINO of about a hundred thousand random weights, with its processor. Its boxes mean nothing."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "an", "animal", "dog", "person"]
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, image_size=64,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=transformers.BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        num_queries=10, d_model=32, max_text_len=32, disable_custom_kernels=True,
        encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2,
    )  # fmt: skip
    with drawn_from(seed):
        transformers.GroundingDinoForObjectDetection(config).save_pretrained(str(folder))
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(str(folder))
    return Path(folder)


def _redraw(model: nn.Module, vectors: float) -> None:
    """Draw all weights anew: as initialised, many are 0 or so small that nothing depends on them.

    Args:
        vectors: deviation of biases and scales.
    """
    for weight in model.parameters():
        nn.init.normal_(weight, std=max(weight[0].numel(), 1) ** -0.5 if weight.ndim > 1 else vectors)


def _wake(transformer: diffusers.CogVideoXTransformer3DModel) -> None:
    """Open the gates of the blocks and the last layer: as initialised, nothing a block does would be seen outside."""
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            nn.init.normal_(norm.linear.bias, std=0.5)
    nn.init.normal_(transformer.proj_out.weight, std=0.1)


def _tokenizer(tokens: int = TEXT_TOKENS) -> transformers.T5Tokenizer:
    """Return a tokenizer with a word for every printable character, and T5's special tokens."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = special + [(letter, -3.0) for letter in _letters()]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=tokens)


def _letters() -> list[str]:
    return [chr(code) for code in range(33, 127)]


def _template_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer with a word for every printable character, and as many as Llama 3 has for HunyuanVideo's templates.

    diffusers cuts the templates off by numbers of tokens that hold for Llama 3.
    """
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    pipelines = (pipeline_hunyuan_video, pipeline_hunyuan_video_image2video)
    parts = [re.findall(TEMPLATE_WORDS, module.DEFAULT_PROMPT_TEMPLATE["template"]) for module in pipelines]
    words = dict.fromkeys(part for template in parts for part in template if part not in "{}")
    special = ["<pad>", "<unk>", "<|begin_of_text|>", *(word for word in words if word.startswith("<"))]
    vocabulary = dict.fromkeys([*special, *words, " ", *_letters()])
    model = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    longest_first = "|".join(re.escape(word) for word in sorted(vocabulary, key=len, reverse=True))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(longest_first), "isolated")
    begin = ("<|begin_of_text|>", list(vocabulary).index("<|begin_of_text|>"))
    model.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=begin[0], pad_token="<pad>", unk_token="<unk>", padding_side="right"
    )


def _tiny_llava(
    text: transformers.LlamaConfig, tokenizer: transformers.PreTrainedTokenizerFast
) -> transformers.LlavaConfig:
    """Return the configuration of a LLaVA whose pictures have 24 x 24 patches, as the pipeline takes for granted."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, image_size=48, patch_size=2
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    return transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image, pad_token_id=tokenizer.pad_token_id
    )
