"""The forward pass of a language model of the Llama architecture, with hooks to quantize it.

Source: Touvron et al. 2023, "LLaMA", section 2.2: RMSNorm (Zhang and Sennrich 2019), SwiGLU
(Shazeer 2020), rotary embedding (Su et al. 2021); grouped queries: Ainslie et al. 2023.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import silu

from qhelpers.checks import checked_integer


@dataclass(frozen=True)
class Config:
    """What the weights' shapes don't tell.

    layers: the number of blocks. heads: of queries; kv_heads: of keys and values, which
    divides heads. context: the most tokens in one pass. eps: added to the mean square by
    RMSNorm. rope_base: the base of the rotary embedding's frequencies.
    """

    layers: int
    heads: int
    kv_heads: int
    context: int
    eps: float = 1e-5
    rope_base: float = 10_000.0


class LanguageModel:
    """A decoder-only transformer whose every step can be watched and replaced.

    config: a Config.
    weights: a dict of name -> tensor, all of one floating dtype, named as in GGUF files.
    For each block i from 0 on, with W the width, H the heads' size and F the inner width:

        blk.i.attn_norm.weight (W,)              blk.i.ffn_norm.weight (W,)
        blk.i.attn_q.weight (heads * H, W)       blk.i.ffn_gate.weight (F, W)
        blk.i.attn_k.weight (kv_heads * H, W)    blk.i.ffn_up.weight (F, W)
        blk.i.attn_v.weight (kv_heads * H, W)    blk.i.ffn_down.weight (W, F)
        blk.i.attn_output.weight (W, heads * H)

    and token_embd.weight (vocabulary, W), output_norm.weight (W,) and, where the embedding
    doesn't serve for it, output.weight (vocabulary, W). Gradients reach weights that ask for them.
    tokenizer: an object with encode(text) -> ids and decode(ids) -> text.

    Within each head, rows 2j and 2j + 1 of attn_q and attn_k are the pair that the rotary
    embedding turns by its j-th angle, as in GGUF. Checkpoints for transformers store the same
    rows in another order: first all the 2j, then all the 2j + 1.
    """

    def __init__(self, config, weights, tokenizer):
        self.config, self.weights, self.tokenizer = config, weights, tokenizer

    @property
    def matrices(self):
        """The names of the blocks' matrices, whose products go through `linear`."""
        return [name for name in self.weights if name.startswith("blk.") and "norm" not in name]

    @property
    def vocabulary(self):
        """The number of different tokens."""
        return len(self.weights["token_embd.weight"])

    # The hooks: what they do where nobody replaces them.

    def linear(self, name, x):
        """Return x (..., in) times the transposed matrix `name` (out, in): shape (..., out)."""
        return x @ self.weights[name].T

    def keys_values(self, layer, keys, values):
        """Return what attention reads, and the KV cache keeps, of a layer's keys and values.

        Both have the shape (..., kv_heads, tokens, size); the keys are already rotated.
        """
        return keys, values

    def residual(self, layer, x):
        """Return the residual stream (..., tokens, width) that leaves this layer."""
        return x

    @contextlib.contextmanager
    def hooked(self, *, linear=None, keys_values=None, residual=None):
        """Replace one or more of the three methods above, for the block of a `with`.

        A hook takes the method's arguments and returns what the method returns. One that only
        watches may call the original: `plain = model.linear` before the block.
        """
        hooks = {"linear": linear, "keys_values": keys_values, "residual": residual}
        given = {name: hook for name, hook in hooks.items() if hook is not None}
        before = {name: vars(self)[name] for name in given if name in vars(self)}
        vars(self).update(given)  # an attribute of the object hides the method of its class
        try:
            yield self
        finally:
            for name in given:
                del vars(self)[name]
            vars(self).update(before)

    # The forward pass.

    def hidden(self, ids, cache=None):
        """Return the last layer's normed output, (tokens, width) or (batch, tokens, width).

        ids: whole numbers, a list, an array or a tensor, of shape (tokens,) or (batch, tokens).
        cache: a dict, empty at first, that collects each layer's keys and values, or None.
        With one, `ids` continue the tokens that are in it.
        Raises TypeError and ValueError as `checked_ids` does.
        """
        ids = checked_ids(ids, self.vocabulary, self.config.context - length(cache, 0))
        x = self.weights["token_embd.weight"][ids]
        for layer in range(self.config.layers):
            x = x + self.attention(layer, self.norm(f"blk.{layer}.attn_norm.weight", x), cache)
            x = x + self.feed_forward(layer, self.norm(f"blk.{layer}.ffn_norm.weight", x))
            x = self.residual(layer, x)
        return self.norm("output_norm.weight", x)

    def logits(self, ids, cache=None):
        """Return the scores of each next token, (tokens, vocabulary) or with the batch first."""
        output = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return self.hidden(ids, cache) @ output.T

    def norm(self, name, x):
        """Return x divided by its root mean square, times the weight `name` (RMSNorm)."""
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.eps)
        return x * scale * self.weights[name]

    def attention(self, layer, x, cache):
        """Return what each token takes from itself and those before it, (..., tokens, width)."""
        config, block = self.config, f"blk.{layer}"
        q = split_heads(self.linear(f"{block}.attn_q.weight", x), config.heads)
        k = split_heads(self.linear(f"{block}.attn_k.weight", x), config.kv_heads)
        v = split_heads(self.linear(f"{block}.attn_v.weight", x), config.kv_heads)
        past = length(cache, layer)
        q, k = (rotate(part, config.rope_base, past) for part in (q, k))
        k, v = self.keys_values(layer, k, v)
        if cache is not None:
            if past:
                k, v = (torch.cat(pair, dim=-2) for pair in zip(cache[layer], (k, v)))
            cache[layer] = k, v
        shared = config.heads // config.kv_heads  # so many heads of queries read the same keys
        k, v = (part.repeat_interleave(shared, dim=-3) for part in (k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + past)
        out = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        return self.linear(f"{block}.attn_output.weight", out.transpose(-2, -3).flatten(-2))

    def feed_forward(self, layer, x):
        """Return (silu(x gate) * (x up)) down, each a matrix (SwiGLU), (..., tokens, width)."""
        gate = silu(self.linear(f"blk.{layer}.ffn_gate.weight", x))
        up = self.linear(f"blk.{layer}.ffn_up.weight", x)
        return self.linear(f"blk.{layer}.ffn_down.weight", gate * up)

    # Text.

    @torch.no_grad()
    def next_ids(self, ids, n, cached=True):
        """Return the n ids that follow `ids` (tokens,): the most probable one, each time.

        With the KV cache a step computes one token; without (`cached=False`), all of them again.
        It goes on past a token that ends a text.
        """
        ids = checked_ids(ids, self.vocabulary, self.config.context).tolist()
        n = checked_integer("n", n, 1, self.config.context - len(ids) + 1)
        cache, new = {} if cached else None, []
        for _ in range(n):
            part = new[-1:] if cache else ids + new
            new.append(int(self.logits(part, cache)[-1].argmax()))
        return new

    def generate(self, prompt, n):
        """Return `prompt` and the n most probable next tokens, as text."""
        ids = list(self.tokenizer.encode(prompt))
        return self.tokenizer.decode(ids + self.next_ids(ids, n))


def length(cache, layer):
    """Return of how many tokens a cache holds this layer's keys and values."""
    return cache[layer][0].shape[-2] if cache and layer in cache else 0


def split_heads(x, heads):
    """Return (..., tokens, heads * size) as (..., heads, tokens, size)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def rotate(x, base=10_000.0, start=0):
    """Return x (..., tokens, size), token t turned by angles proportional to start + t.

    Numbers 2j and 2j + 1 are a point in the plane, turned by (start + t) * base**(-2j / size).
    So the product of a query and a key depends on how far apart they are (Su et al. 2021,
    "RoFormer", section 3.2).
    """
    tokens, size = x.shape[-2:]
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(start, start + tokens, dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def checked_ids(ids, vocabulary, most=None):
    """Return token ids as an int64 tensor of shape (tokens,) or (batch, tokens).

    Raises TypeError if they aren't integers, and ValueError if there are none, more than
    `most`, or one that is not from 0 to vocabulary - 1.
    """
    ids = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    if ids.size == 0 or ids.ndim not in (1, 2):
        raise ValueError(
            f"ids have the shape {ids.shape}; they must be (tokens,) or (batch, tokens), not empty"
        )
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids have the type {ids.dtype}; they must be integers")
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if wrong.size:
        raise ValueError(f"ids hold {wrong[0]}; they must be from 0 to {vocabulary - 1}")
    if most is not None and ids.shape[-1] > most:
        raise ValueError(f"ids are {ids.shape[-1]} tokens; at most {most} fit into the context")
    return torch.from_numpy(ids.astype(np.int64))
