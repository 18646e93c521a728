#!/usr/bin/env bash
# Run in the folder of this export, in the environment of diffusers, with DIFFUSERS set to its folder.
set -euo pipefail
: "${DIFFUSERS:?set it to the folder of diffusers}"
accelerate launch "$DIFFUSERS/examples/dreambooth/train_dreambooth_lora_flux2_klein.py" \
  --pretrained_model_name_or_path black-forest-labs/FLUX.2-klein-base-4B \
  --dataset_name data \
  --image_column image \
  --caption_column caption \
  --instance_prompt j4ne \
  --output_dir output \
  --rank 16 \
  --lora_alpha 8 \
  --lora_layers attn.to_q,attn.to_k,attn.to_v,attn.to_out.0,attn.add_q_proj,attn.add_k_proj,attn.add_v_proj,attn.to_add_out,ff.linear_in,ff.linear_out,ff_context.linear_in,ff_context.linear_out,attn.to_qkv_mlp_proj,single_transformer_blocks.0.attn.to_out,single_transformer_blocks.1.attn.to_out,single_transformer_blocks.2.attn.to_out,single_transformer_blocks.3.attn.to_out,single_transformer_blocks.4.attn.to_out,single_transformer_blocks.5.attn.to_out,single_transformer_blocks.6.attn.to_out,single_transformer_blocks.7.attn.to_out,single_transformer_blocks.8.attn.to_out,single_transformer_blocks.9.attn.to_out,single_transformer_blocks.10.attn.to_out,single_transformer_blocks.11.attn.to_out,single_transformer_blocks.12.attn.to_out,single_transformer_blocks.13.attn.to_out,single_transformer_blocks.14.attn.to_out,single_transformer_blocks.15.attn.to_out,single_transformer_blocks.16.attn.to_out,single_transformer_blocks.17.attn.to_out,single_transformer_blocks.18.attn.to_out,single_transformer_blocks.19.attn.to_out \
  --aspect_ratio_buckets '1344,768;1408,768;1216,832;1280,832;1152,896;1088,960;1024,1024;960,1088;896,1152;832,1216;832,1280;768,1344;768,1408' \
  --train_batch_size 1 \
  --gradient_accumulation_steps 1 \
  --max_train_steps 1000 \
  --checkpointing_steps 250 \
  --checkpoints_total_limit 5 \
  --resume_from_checkpoint latest \
  --learning_rate 0.0001 \
  --lr_scheduler cosine \
  --lr_warmup_steps 20 \
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
  --caption_dropout 0.05 \
  --text_encoder_out_layers 9 18 27 \
  --use_aspect_ratio_buckets
