"""Writes reference.json: what transformers computes with the weights of our two models.

Run by hand, where transformers is installed too: `python -m tests.language.make_reference`.
Its LlamaForCausalLM computes in float64, with two parts replaced: the norms and the angles of
the rotary embedding, which it computes in float32 whatever the model's type.
"""

import json
import re
from pathlib import Path

import torch
import transformers
from torch.nn.functional import cross_entropy, rms_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from qhelpers.language.smollm import load_smollm
from qhelpers.language.texts import test_text
from qhelpers.language.tiny import load_tiny

REFERENCE = Path(__file__).with_name("reference.json")  # read by the tests beside it
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PROMPTS = {
    "smollm": [
        "The capital of France is",
        "Water boils at a temperature of",
        "def add(a, b):\n    return",
        "Once upon a time, there was a little",
        "Is this a dagger which I see before me,",
    ],
    "tiny": ["MACBETH.\nIs this a d", "To be, or not to be", "\n\n[Enter ", "Good my lor"],
}


class Rotary(torch.nn.Module):
    """LlamaRotaryEmbedding with angles in float64."""

    def __init__(self, base, size):
        super().__init__()
        self.frequencies = 1 / base ** (torch.arange(0, size, 2).double() / size)

    def forward(self, x, position_ids):
        angles = (position_ids[..., None] * self.frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()


def halves_apart(matrix, heads):
    """Return the rows of attn_q or attn_k in transformers' order: all the 2j, then the 2j + 1."""
    pairs = matrix.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def with_transformers(model):
    """Return a LanguageModel as a LlamaForCausalLM."""
    config, weights = model.config, model.weights
    size = len(weights["blk.0.attn_q.weight"]) // config.heads
    options = transformers.LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=weights["token_embd.weight"].shape[1],
        intermediate_size=len(weights["blk.0.ffn_up.weight"]),
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=size,
        max_position_embeddings=config.context,
        rms_norm_eps=config.eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        tie_word_embeddings=True,
    )
    renamed = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "lm_head.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"],
    }
    for layer in range(config.layers):
        for name, theirs in NAMES.items():
            weight = weights[f"blk.{layer}.{name}.weight"]
            if name in ("attn_q", "attn_k"):
                weight = halves_apart(weight, config.heads if name == "attn_q" else config.kv_heads)
            renamed[f"model.layers.{layer}.{theirs}.weight"] = weight
    with torch.device("meta"):
        llama = transformers.LlamaForCausalLM(options)
    llama.load_state_dict(renamed, assign=True)
    llama.model.rotary_emb = Rotary(config.rope_base, size)
    LlamaRMSNorm.forward = lambda norm, x: rms_norm(
        x, norm.weight.shape, norm.weight, norm.variance_epsilon
    )
    return llama.eval()


def next_tokens(llama, ids):
    """Return the five most probable next tokens, and 20 tokens generated greedily."""
    ids = torch.tensor([ids])
    top = llama(ids).logits[0, -1].softmax(-1).topk(5)
    new = llama.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    return {
        "top": top.indices.tolist(),
        "probabilities": top.values.tolist(),
        "generated": new[0, ids.shape[1] :].tolist(),
    }


def reference(model, prompts, chunk):
    """Return what to compare a model with; `chunk` tokens are the text whose loss is taken."""
    llama, rows = with_transformers(model), []
    for prompt in prompts:
        ids = model.tokenizer.encode(prompt)
        rows.append({"prompt": prompt, "ids": ids, **next_tokens(llama, ids)})
    ids = torch.tensor([model.tokenizer.encode(test_text())[:chunk]])
    logits = llama(ids).logits
    difference = (logits[0] - model.logits(ids[0])).abs().max().item()
    print(f"largest logit {logits.abs().max():.1f}, largest difference {difference:.1e}")
    assert difference < 1e-9
    loss = cross_entropy(logits[0, :-1], ids[0, 1:]).item()
    return {"prompts": rows, "tokens": chunk, "loss": loss}


@torch.no_grad()
def main():
    found = {
        "made by": f"transformers {transformers.__version__}, LlamaForCausalLM in float64 with "
        "norms and rotary angles in float64: python -m tests.language.make_reference",
        "tiny": reference(load_tiny(), PROMPTS["tiny"], 64),
        "smollm": reference(load_smollm(), PROMPTS["smollm"], 512),
    }
    text = json.dumps(found, indent=1)
    text = re.sub(r"\[[^][{}]+\]", lambda numbers: " ".join(numbers[0].split()), text)  # one line
    REFERENCE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
