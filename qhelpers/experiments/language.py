"""The experiments of notebook 9: two language models in few bits, and their perplexity."""

from functools import partial

import torch
from tqdm import tqdm

from qhelpers.experiments.language_methods import (
    ACTIVATIONS,
    ALPHAS,
    CACHE,
    WEIGHTS,
    Setting,
    static_only,
)
from qhelpers.language.activations import mixed_product
from qhelpers.language.perplexity import token_losses
from qhelpers.language.quantized import quantized_products
from qhelpers.language.smollm import load_smollm
from qhelpers.language.texts import calibration_text, test_text
from qhelpers.language.tiny import load_tiny

LANGUAGE_COLUMNS = (
    *("model", "what", "method", "weight_bits", "activation_bits", "cache_bits"),
    *("perplexity", "loss_difference", "standard_error"),
)
FLOAT = 64  # the bits of what is not quantized
LARGE, TINY = "SmolLM2-135M", "tiny"
TOKENS = 1024  # that the large model reads; the tiny one reads all of both texts
FOUR_BITS = ("groups of 64", "groups of 16", "NF4, blocks of 64", "MXFP4, blocks of 32",
             "NVFP4, blocks of 16")  # fmt: skip
INTEGERS = ("per tensor", "per channel", "groups of 32", "groups of 32, asymmetric")
AWQ = ("AWQ, groups of 32", "AWQ, groups of 32, asymmetric")
GPTQ = ("GPTQ, per channel", "GPTQ, groups of 32")
INPUTS = ("attn_q", "attn_output", "ffn_gate", "ffn_down")  # one of each kind; see input_name
LLM_INT8 = "LLM.int8()"
COMBINED = {  # method: of the weights, of the activations, of the cache, and their bits
    "per channel, static": ("per channel", "per tensor, static", "", (8, 8, FLOAT)),
    "per channel, per token": ("per channel", "per token", "", (8, 8, FLOAT)),
    **{
        f"SmoothQuant {a}, static": (
            f"SmoothQuant {a}, per channel", f"SmoothQuant {a}, static", "", (8, 8, FLOAT)
        )
        for a in ALPHAS
    },
    LLM_INT8: ("", "", "", (8, 8, FLOAT)),
    "groups of 32, per token": ("groups of 32", "per token", "", (4, 8, FLOAT)),
    "groups of 32 and 4 bits, per token": ("groups of 32", "per token", "", (4, 4, FLOAT)),
    "rotated": ("rotated, groups of 32", "rotated, per token", "", (4, 4, FLOAT)),
    "rotated, with the cache": (
        "rotated, groups of 32", "rotated, per token", "K per channel, V per token", (4, 4, 4)
    ),
}  # fmt: skip


def language_setting(name):
    """Return the Setting of a model, LARGE or TINY, with its texts as tokens."""
    model, tokens = (load_smollm(), TOKENS) if name == LARGE else (load_tiny(), None)
    ids = [model.tokenizer.encode(text)[:tokens] for text in (test_text(), calibration_text())]
    return Setting(model, *ids)


def choices(name, layers):
    """Return what the table has of a model: (what, method, bits of weights, activations, cache)."""
    found = [("float", "", FLOAT, FLOAT, FLOAT)]
    found += [("weights", m, b, FLOAT, FLOAT) for m in INTEGERS for b in (8, 4, 3, 2)]
    found += [("weights", m, 4, FLOAT, FLOAT) for m in FOUR_BITS]
    found += [("weights", m, b, FLOAT, FLOAT) for m in AWQ for b in (4, 3)]
    gptq_bits = (4,) if name == LARGE else (4, 3, 2)  # some minutes each
    found += [("weights", m, b, FLOAT, FLOAT) for m in GPTQ for b in gptq_bits]
    found += [("activations", m, FLOAT, b, FLOAT) for b in (8, 6, 4) for m in ACTIVATIONS]
    found += [("cache", m, FLOAT, FLOAT, b) for b in (8, 4, 3, 2) for m in CACHE]
    found += [("both", method, *bits) for method, (*_, bits) in COMBINED.items()]
    inputs = (*INPUTS, *(f"blk.{layer}.ffn_down" for layer in range(layers)))
    return found + [("one input", f"only {place}", FLOAT, 8, FLOAT) for place in inputs]


def hooks(setting, what, method, weight_bits, activation_bits, cache_bits):
    """Return the arguments of `LanguageModel.hooked` for one of the choices."""
    model, activations = setting.model, None
    if what == "both" and method == LLM_INT8:
        return {"linear": lambda n, x: mixed_product(x, model.weights[n], activation_bits)}
    kinds = ("weights", "activations", "cache")
    methods = COMBINED[method] if what == "both" else [method if what == k else "" for k in kinds]
    of_weights, of_activations, of_cache = methods[:3]
    if of_activations:
        activations = partial(ACTIVATIONS[of_activations], setting, activation_bits)
    if what == "one input":
        part = method.removeprefix("only ")
        activations = partial(static_only, setting, activation_bits, part=part)
    weights = WEIGHTS[of_weights](setting, weight_bits) if of_weights else None
    given = {"linear": quantized_products(model, weights, activations)}
    if of_cache:
        given["keys_values"] = lambda layer, k, v: CACHE[of_cache](k, v, cache_bits)
    return given


@torch.no_grad()
def language_row(setting, *choice):
    """Return (perplexity, loss difference to the float model, its standard error)."""
    with setting.model.hooked(**hooks(setting, *choice)):
        losses = token_losses(setting.model, setting.test_ids)
    differences = losses - setting.losses
    error = differences.std() / len(differences) ** 0.5
    results = losses.mean().exp(), differences.mean(), error
    return tuple(float(f"{number.item():.7g}") for number in results)


def language_rows(data):
    """Yield the rows of the table "language": a model, one of its choices, and what it costs."""
    for name in (TINY, LARGE):
        setting = language_setting(name)
        for choice in tqdm(choices(name, setting.model.config.layers), name):
            yield name, *choice, *language_row(setting, *choice)
