"""Models that no notebook shows, with what people's own models have, and a batch for small ones."""

import torch
from torch import nn
from torch.nn import functional

BATCH = torch.linspace(-1, 2, 24).reshape(4, 6)


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm; the second ReLU, pooling and flatten are functions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, padding_mode="reflect")
        self.average = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))

    def forward(self, x):
        x = self.pool(self.relu(self.norm1(self.conv1(x.view(-1, 1, 28, 28)))))
        x = self.average(functional.relu(self.norm2(self.conv2(x))))
        return self.head(torch.flatten(x, 1))


class Branched(nn.Module):
    """A branch through GELU and a difference, which compute in floats."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(784, 30), nn.Linear(30, 30)
        self.last = nn.Linear(30, 10)

    def forward(self, x):
        x = torch.relu(self.first(x.flatten(1)))
        return self.last(functional.gelu(self.second(x)) - x)


class Twice(nn.Module):
    """A layer, and a BatchNorm behind it, that are called twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.layer(torch.relu(self.norm(self.layer(x)))))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x
