#!/usr/bin/env bash
# diffusers 0.42.1: ZImagePipeline writes the chat template into the caller's list of prompts.
#
# What one expects: prompts are read. What happens: encode_prompt, and so a call of the pipeline, puts what the chat
# template makes of each prompt into the list that was given, and a second call with the same list applies the template
# to that once more: another text, and another picture. The list of negative prompts fares alike.
# Who meets it: whoever draws several times from one list (seeds, guidance, steps), or saves the prompts afterwards.
# What helps: pipe(prompt=list(prompts)).
#
# Seen:
#   given: ['a red apple']
#   after the first call: ['<|user|>a red apple<|assistant|>']
#   after the second: ['<|user|><|user|>a red apple<|assistant|><|assistant|>']
#   the two embeddings have 3 and 5 tokens
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(mark, "isolated") for mark in ("<|user|>", "<|assistant|>")]
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"
encoder = Qwen3Model(
    Qwen3Config(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
)
transformer = ZImageTransformer2DModel(
    in_channels=4,
    dim=32,
    n_layers=1,
    n_refiner_layers=1,
    n_heads=2,
    n_kv_heads=2,
    cap_feat_dim=32,
    axes_dims=[4, 4, 8],
    axes_lens=[64, 64, 64],
)
pipe = ZImagePipeline(FlowMatchEulerDiscreteScheduler(), AutoencoderKL(), encoder, tokenizer, transformer)

prompts = ["a red apple"]
seen = [list(prompts)]
tokens = []
for _ in range(2):
    with torch.no_grad():
        embeddings, _ = pipe.encode_prompt(prompt=prompts, do_classifier_free_guidance=False)
    tokens.append(len(embeddings[0]))
    seen.append(list(prompts))
for when, what in zip(("given", "after the first call", "after the second"), seen):
    print(f"{when}: {what}")
print(f"the two embeddings have {tokens[0]} and {tokens[1]} tokens")
once, twice = "<|user|>a red apple<|assistant|>", "<|user|><|user|>a red apple<|assistant|><|assistant|>"
sys.exit(seen != [["a red apple"], [once], [twice]] or tokens[0] == tokens[1])
PYTHON
