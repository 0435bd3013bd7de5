"""language.inputs: what is recorded of each product's input."""

import torch

from qhelpers.language.inputs import input_name, record_inputs
from qhelpers.language.texts import calibration_text
from qhelpers.language.tiny import load_tiny


def test_inputs_are_those_of_the_products():
    """Against all inputs, kept; in two parts, the second shorter; the model isn't changed."""
    model = load_tiny()
    ids = model.tokenizer.encode(calibration_text())[:100]
    kept, plain = {}, model.linear

    def keep(name, x):
        kept.setdefault(name, []).append(x)
        return plain(name, x)

    with model.hooked(linear=keep):
        for part in (ids[:60], ids[60:]):
            model.hidden(part[:-1])
    found = record_inputs(model, ids, 60, second_moments=True)
    assert model.linear == plain
    assert set(found) == {input_name(name) for name in model.matrices}
    for name, parts in kept.items():
        x, inputs = torch.cat(parts), found[input_name(name)]
        assert inputs.tokens == len(x) == 98
        assert torch.equal(inputs.largest, x.abs().amax(dim=0))
        assert torch.allclose(inputs.mean_abs, x.abs().mean(dim=0))
        assert torch.allclose(inputs.second_moment, x.T @ x / 98)
    twice = record_inputs(model, ids, 60, change=lambda name, x: 2 * x)
    for name, inputs in twice.items():
        assert torch.equal(inputs.largest, 2 * found[name].largest) and inputs.products is None


def test_products_that_share_an_input():
    shared = {name: input_name(f"blk.12.{name}.weight") for name in ("attn_k", "attn_v", "attn_q")}
    assert set(shared.values()) == {"blk.12.attn_q.weight"}
    assert input_name("blk.0.ffn_up.weight") == "blk.0.ffn_gate.weight"
    for name in ("blk.0.attn_output.weight", "blk.0.ffn_down.weight", "blk.0.ffn_gate.weight"):
        assert input_name(name) == name
