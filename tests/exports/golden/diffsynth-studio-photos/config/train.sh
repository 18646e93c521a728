#!/usr/bin/env bash
# Run in the folder of this export, in the environment of DiffSynth-Studio, with DIFFSYNTH_STUDIO set to its folder.
set -euo pipefail
: "${DIFFSYNTH_STUDIO:?set it to the folder of DiffSynth-Studio}"
accelerate launch "$DIFFSYNTH_STUDIO/examples/flux2/model_training/train.py" \
  --dataset_base_path data \
  --dataset_metadata_path data/metadata.json \
  --data_file_keys image \
  --max_pixels 1048576 \
  --dataset_repeat 167 \
  --dataset_num_workers 2 \
  --model_id_with_origin_paths 'black-forest-labs/FLUX.2-klein-4B:text_encoder/*.safetensors,black-forest-labs/FLUX.2-klein-base-4B:transformer/*.safetensors,black-forest-labs/FLUX.2-klein-4B:vae/diffusion_pytorch_model.safetensors' \
  --tokenizer_path black-forest-labs/FLUX.2-klein-4B:tokenizer/ \
  --learning_rate 0.0001 \
  --weight_decay 0.0001 \
  --num_epochs 1 \
  --remove_prefix_in_ckpt pipe.dit. \
  --output_path output \
  --save_steps 250 \
  --lora_base_model dit \
  --lora_target_modules attn.to_q,attn.to_k,attn.to_v,attn.to_out.0,attn.add_q_proj,attn.add_k_proj,attn.add_v_proj,attn.to_add_out,ff.linear_in,ff.linear_out,ff_context.linear_in,ff_context.linear_out,attn.to_qkv_mlp_proj,single_transformer_blocks.0.attn.to_out,single_transformer_blocks.1.attn.to_out,single_transformer_blocks.2.attn.to_out,single_transformer_blocks.3.attn.to_out,single_transformer_blocks.4.attn.to_out,single_transformer_blocks.5.attn.to_out,single_transformer_blocks.6.attn.to_out,single_transformer_blocks.7.attn.to_out,single_transformer_blocks.8.attn.to_out,single_transformer_blocks.9.attn.to_out,single_transformer_blocks.10.attn.to_out,single_transformer_blocks.11.attn.to_out,single_transformer_blocks.12.attn.to_out,single_transformer_blocks.13.attn.to_out,single_transformer_blocks.14.attn.to_out,single_transformer_blocks.15.attn.to_out,single_transformer_blocks.16.attn.to_out,single_transformer_blocks.17.attn.to_out,single_transformer_blocks.18.attn.to_out,single_transformer_blocks.19.attn.to_out \
  --lora_rank 16 \
  --gradient_accumulation_steps 1 \
  --enable_tensorboard_log
