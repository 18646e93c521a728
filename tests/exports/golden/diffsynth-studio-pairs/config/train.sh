#!/usr/bin/env bash
# Run in the folder of this export, in the environment of DiffSynth-Studio, with DIFFSYNTH_STUDIO set to its folder.
set -euo pipefail
: "${DIFFSYNTH_STUDIO:?set it to the folder of DiffSynth-Studio}"
accelerate launch "$DIFFSYNTH_STUDIO/examples/flux2/model_training/train.py" \
  --dataset_base_path data \
  --dataset_metadata_path data/metadata.json \
  --data_file_keys image,edit_image \
  --extra_inputs edit_image \
  --max_pixels 1048576 \
  --dataset_repeat 1000 \
  --dataset_num_workers 2 \
  --model_id_with_origin_paths 'black-forest-labs/FLUX.2-klein-9B:text_encoder/*.safetensors,black-forest-labs/FLUX.2-klein-base-9B:transformer/*.safetensors,black-forest-labs/FLUX.2-klein-9B:vae/diffusion_pytorch_model.safetensors' \
  --tokenizer_path black-forest-labs/FLUX.2-klein-9B:tokenizer/ \
  --learning_rate 0.0001 \
  --weight_decay 0.0001 \
  --num_epochs 1 \
  --remove_prefix_in_ckpt pipe.dit. \
  --output_path output \
  --save_steps 500 \
  --lora_base_model dit \
  --lora_target_modules x_embedder,transformer_blocks.0.attn.to_q,transformer_blocks.0.attn.to_k,transformer_blocks.0.attn.to_v,transformer_blocks.0.attn.to_out.0,transformer_blocks.0.attn.add_q_proj,transformer_blocks.0.attn.add_k_proj,transformer_blocks.0.attn.add_v_proj,transformer_blocks.0.attn.to_add_out,transformer_blocks.0.ff.linear_in,transformer_blocks.0.ff.linear_out,transformer_blocks.0.ff_context.linear_in,transformer_blocks.0.ff_context.linear_out,transformer_blocks.3.attn.to_q,transformer_blocks.3.attn.to_k,transformer_blocks.3.attn.to_v,transformer_blocks.3.attn.to_out.0,transformer_blocks.3.attn.add_q_proj,transformer_blocks.3.attn.add_k_proj,transformer_blocks.3.attn.add_v_proj,transformer_blocks.3.attn.to_add_out,transformer_blocks.3.ff.linear_in,transformer_blocks.3.ff.linear_out,transformer_blocks.3.ff_context.linear_in,transformer_blocks.3.ff_context.linear_out \
  --lora_rank 32 \
  --gradient_accumulation_steps 2 \
  --enable_tensorboard_log
