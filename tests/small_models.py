"""Small models as people have them, and what is to hold for each: shared by the tests."""

import torch
from torch import nn
from torch.nn import functional

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4


class Net(nn.Module):
    """Two layers, whose names may be given; `forward` of subclasses says what they compute."""

    def __init__(self, first="first", second="second"):
        super().__init__()
        torch.manual_seed(0)
        self.names = first, second
        self.add_module(first, nn.Linear(12, 16))
        self.add_module(second, nn.Linear(16, 4))
        self.layers = [self.get_submodule(name) for name in self.names]
        self.layers = tuple(self.layers)  # not registered again
        self.eval()

    def forward(self, x):
        return getattr(self, self.names[1])(torch.relu(getattr(self, self.names[0])(x)))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def sqnr(exact, other):
    """Signal to quantization noise, in dB."""
    noise = (exact - other).double().square().sum()
    return 10 * torch.log10(exact.double().square().sum() / noise).item()


def train(model, x=X, labels=LABELS, steps=3):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval()


def tensors(values):
    """Return the tensors in what a model returns, in order."""
    if isinstance(values, torch.Tensor):
        return [values]
    values = values.values() if isinstance(values, dict) else values
    several = isinstance(values, (tuple, list, type({}.values())))
    return [tensor for value in values for tensor in tensors(value)] if several else []


def called(model, batch):
    batch = batch if isinstance(batch, tuple) else (batch,)
    with torch.no_grad():
        return tensors(model(*[each.clone() for each in batch]))
