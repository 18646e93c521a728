#!/usr/bin/env bash
# Run in the folder of this export, in the environment of musubi-tuner, with MUSUBI_TUNER set to its folder.
set -euo pipefail
: "${MUSUBI_TUNER:?set it to the folder of musubi-tuner}"
python "$MUSUBI_TUNER/src/musubi_tuner/flux_2_cache_latents.py" \
  --dataset_config config/dataset.toml \
  --vae models/ae.safetensors \
  --model_version klein-base-4b
python "$MUSUBI_TUNER/src/musubi_tuner/flux_2_cache_text_encoder_outputs.py" \
  --dataset_config config/dataset.toml \
  --text_encoder models/qwen_3_4b.safetensors \
  --model_version klein-base-4b
accelerate launch "$MUSUBI_TUNER/src/musubi_tuner/flux_2_train_network.py" \
  --config_file config/musubi-tuner.toml
