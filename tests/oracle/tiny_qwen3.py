"""Records what Hugging Face transformers computes with the bundled checkpoint.

    pip install torch transformers==5.23.0 safetensors numpy
    python tests/oracle/tiny_qwen3.py [assets/tiny-qwen3]

The bfloat16 weights are computed with in float32 on the CPU, with eager attention. Writes, in `oracle/`
beside the weights:

- `expect.npz`, stored: integers int32, the rest float32.

  | name | shape | what |
  | --- | --- | --- |
  | `input_ids` | [1, L] | the prompt |
  | `embeddings` | [1, L, hidden] | their embeddings |
  | `layers.{i}.self_attn`, `layers.{i}.mlp` | [1, L, hidden] | what the sub-layer adds to the residual stream |
  | `layers.{i}` | [1, L, hidden] | what the block returns |
  | `norm` | [1, L, hidden] | after the final norm |
  | `logits` | [1, L, vocabulary] | |
  | `greedy` | [1, 32] | the tokens that greedy decoding with a cache appends, end tokens included |
  | `batch_input_ids`, `batch_logits` | [2, 12], [2, 12, vocabulary] | a batch without padding |

  Stages have the names of the probe points in `src/models`. Elsewhere outputs of transformers are often
  kept as `hidden.0` .. `hidden.N` (`output_hidden_states`): `hidden.0` is `embeddings`, `hidden.{i + 1}` is
  `layers.{i}`, but for the last, which is `norm`.
- `oracle.json`: versions, prompts, a rendered chat, dtype, spread of each output, how far transformers' cached decoding is
  from one full pass, and the smallest margin between the two best greedy logits: how exact a port can be
  asked to be.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "The values are computed when they are read. Each operation returns a new array, and an error says"
BATCH = ["The tokenizer reads the text and returns the ids of", "A model has one file. It lists its layers and the weights"]
CHAT = [{"role": "user", "content": "Which kernel is fast?"}]
BATCH_LENGTH, GREEDY, SEED = 12, 32, 0

transformers.logging.set_verbosity_error()
torch.manual_seed(SEED)
torch.set_num_threads(1)
directory = Path(sys.argv[1] if len(sys.argv) > 1 else "assets/tiny-qwen3")
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()

stages = {}


def record(name):
    def hook(module, inputs, output):
        stages[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

    return hook


body = model.model
points = {"embeddings": body.embed_tokens, "norm": body.norm}
for i, layer in enumerate(body.layers):
    points |= {f"layers.{i}.self_attn": layer.self_attn, f"layers.{i}.mlp": layer.mlp, f"layers.{i}": layer}

with torch.no_grad():
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    hooks = [module.register_forward_hook(record(name)) for name, module in points.items()]
    logits = model(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()

    out = model.generate(
        input_ids=ids,
        do_sample=False,
        max_new_tokens=GREEDY,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    greedy, steps = out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1)
    full = model(input_ids=out.sequences, use_cache=False).logits[:, ids.shape[1] - 1 : -1]

    batch = [tokenizer(text)["input_ids"][:BATCH_LENGTH] for text in BATCH]
    assert all(len(row) == BATCH_LENGTH for row in batch)
    batch = torch.tensor(batch)
    batch_logits = model(input_ids=batch, use_cache=False).logits

arrays = {"input_ids": ids, **stages, "logits": logits, "greedy": greedy}
arrays |= {"batch_input_ids": batch, "batch_logits": batch_logits}
arrays = {k: v.numpy().astype(np.float32 if v.is_floating_point() else np.int32) for k, v in arrays.items()}
top = steps.topk(2, dim=-1).values
info = {
    "checkpoint": directory.name,
    "versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
    "dtype": "float32 computation from bfloat16 weights",
    "attention": "eager",
    "seed": SEED,
    "prompt": PROMPT,
    "batch_prompts": BATCH,
    "greedy_text": tokenizer.decode(greedy[0]),
    "chat": tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True),
    "std": {k: float(v.std()) for k, v in arrays.items() if v.dtype == np.float32},
    "max_abs_diff_cache_vs_full": float((steps - full).abs().max()),
    "greedy_min_margin": float((top[..., 0] - top[..., 1]).min()),
}
(directory / "oracle").mkdir(exist_ok=True)
np.savez(directory / "oracle" / "expect.npz", **arrays)
(directory / "oracle" / "oracle.json").write_text(json.dumps(info, indent=2) + "\n")
print(f"{PROMPT} ->{info['greedy_text']}")
