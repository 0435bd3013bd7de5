"""How well a language model predicts a text: the loss of each token, and the perplexity."""

import torch
from torch.nn.functional import cross_entropy

from qhelpers.checks import checked_integer
from qhelpers.language.transformer import checked_ids


@torch.no_grad()
def token_losses(model, ids, chunk=512):
    """Return -log of the probability that the model gave each next token, in nats.

    ids: (tokens,), two or more. They are cut into chunks of this many tokens, or of the model's
    context if that is less. The model reads each chunk without those before it, so the first
    token of each isn't predicted. Returns a tensor of the model's dtype.
    Raises TypeError and ValueError if ids are no tokens of the model's, or fewer than two.
    """
    chunk = min(checked_integer("chunk", chunk, 2, 2**20), model.config.context)
    ids = checked_ids(ids, model.vocabulary)
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(
            f"ids have the shape {tuple(ids.shape)}; they must be (tokens,), two or more"
        )
    losses = [
        cross_entropy(model.logits(part[:-1]), part[1:], reduction="none")
        for part in ids.split(chunk)
        if len(part) > 1
    ]
    return torch.cat(losses)


def perplexity(model, ids, chunk=512):
    """Return exp of the mean of `token_losses`: 1 if each token was certain, and the number of
    tokens in the vocabulary if all were equally probable."""
    return token_losses(model, ids, chunk).double().mean().exp().item()
