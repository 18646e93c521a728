#!/usr/bin/env bash
# Run in the folder of this export, in the environment of diffusers, with DIFFUSERS set to its folder.
set -euo pipefail
: "${DIFFUSERS:?set it to the folder of diffusers}"
accelerate launch "$DIFFUSERS/examples/dreambooth/train_dreambooth_lora_flux2_klein_img2img.py" \
  --pretrained_model_name_or_path black-forest-labs/FLUX.2-klein-base-9B \
  --dataset_name data \
  --image_column image \
  --caption_column caption \
  --instance_prompt j4ne \
  --output_dir output \
  --rank 32 \
  --lora_alpha 32 \
  --lora_layers x_embedder,transformer_blocks.0.attn.to_q,transformer_blocks.0.attn.to_k,transformer_blocks.0.attn.to_v,transformer_blocks.0.attn.to_out.0,transformer_blocks.0.attn.add_q_proj,transformer_blocks.0.attn.add_k_proj,transformer_blocks.0.attn.add_v_proj,transformer_blocks.0.attn.to_add_out,transformer_blocks.0.ff.linear_in,transformer_blocks.0.ff.linear_out,transformer_blocks.0.ff_context.linear_in,transformer_blocks.0.ff_context.linear_out,transformer_blocks.3.attn.to_q,transformer_blocks.3.attn.to_k,transformer_blocks.3.attn.to_v,transformer_blocks.3.attn.to_out.0,transformer_blocks.3.attn.add_q_proj,transformer_blocks.3.attn.add_k_proj,transformer_blocks.3.attn.add_v_proj,transformer_blocks.3.attn.to_add_out,transformer_blocks.3.ff.linear_in,transformer_blocks.3.ff.linear_out,transformer_blocks.3.ff_context.linear_in,transformer_blocks.3.ff_context.linear_out \
  --aspect_ratio_buckets '1344,768;1408,768;1216,832;1280,832;1152,896;1088,960;1024,1024;960,1088;896,1152;832,1216;832,1280;768,1344;768,1408' \
  --train_batch_size 1 \
  --gradient_accumulation_steps 2 \
  --max_train_steps 1000 \
  --checkpointing_steps 250 \
  --checkpoints_total_limit 5 \
  --resume_from_checkpoint latest \
  --learning_rate 0.0001 \
  --lr_scheduler constant \
  --lr_warmup_steps 0 \
  --weighting_scheme logit_normal \
  --logit_mean 0.0 \
  --logit_std 1.0 \
  --optimizer AdamW \
  --adam_beta1 0.9 \
  --adam_beta2 0.999 \
  --adam_weight_decay 0.0001 \
  --adam_epsilon 1e-08 \
  --max_grad_norm 1.0 \
  --seed 42 \
  --mixed_precision bf16 \
  --cache_latents \
  --skip_final_inference \
  --report_to tensorboard \
  --cond_image_column cond_image
