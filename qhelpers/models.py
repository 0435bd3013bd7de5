"""The course's networks, and how to build one from a seed."""

import torch
from torch import nn


class VerySimpleNet(nn.Module):
    """A classifier of 28x28 images: three linear layers, a ReLU after the first two.

    Takes a float tensor of N images, of shape (N, 1, 28, 28) or (N, 784); returns the
    logits of the ten digits, of shape (N, 10).
    """

    def __init__(self, hidden_size_1=100, hidden_size_2=100):
        super().__init__()
        self.linear1 = nn.Linear(28 * 28, hidden_size_1)
        self.linear2 = nn.Linear(hidden_size_1, hidden_size_2)
        self.linear3 = nn.Linear(hidden_size_2, 10)
        self.relu = nn.ReLU()

    def forward(self, img):
        x = img.reshape(-1, 28 * 28)
        x = self.relu(self.linear1(x))
        x = self.relu(self.linear2(x))
        return self.linear3(x)


class QuantizedVerySimpleNet(VerySimpleNet):
    """VerySimpleNet between two stubs, which torch.ao's `convert` replaces: the first by a
    module that quantizes, the second by one that dequantizes."""

    def __init__(self, hidden_size_1=100, hidden_size_2=100):
        super().__init__(hidden_size_1, hidden_size_2)
        self.quant = torch.ao.quantization.QuantStub()
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, img):
        return self.dequant(super().forward(self.quant(img)))


class ConvNet(nn.Module):
    """A classifier of 28x28 images: two convolutions with BatchNorm and ReLU, a linear layer.

    Takes and returns what VerySimpleNet does. The convolutions have stride 2, and ReLU and
    flatten are functions, as in many models.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.linear = nn.Linear(16 * 7 * 7, 10)

    def forward(self, img):
        x = img.reshape(-1, 1, 28, 28)
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.linear(torch.flatten(x, 1))


class DepthwiseNet(nn.Module):
    """A classifier of 28x28 images in the manner of MobileNet: depthwise-separable convolutions.

    Takes and returns what VerySimpleNet does. `features` is a convolution of 5x5 with stride 4,
    then for each of `strides` a depthwise convolution of 3x3, which gives each channel one filter
    of its own, and a pointwise one of 1x1, which mixes the channels; BatchNorm and ReLU6 follow
    each of them. `pool` takes the mean of each channel, `linear` turns the means into logits.
    Source: Howard et al. 2017, section 3.1.
    """

    def __init__(self, channels=32, strides=(2, 1, 1)):
        super().__init__()
        convs = [nn.Conv2d(1, channels, kernel_size=5, stride=4, padding=2, bias=False)]
        for stride in strides:
            depthwise = {"kernel_size": 3, "stride": stride, "padding": 1, "groups": channels}
            convs.append(nn.Conv2d(channels, channels, bias=False, **depthwise))
            convs.append(nn.Conv2d(channels, channels, kernel_size=1, bias=False))
        parts = [(conv, nn.BatchNorm2d(channels), nn.ReLU6()) for conv in convs]
        self.features = nn.Sequential(*(layer for part in parts for layer in part))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, 10)

    def forward(self, img):
        x = self.features(img.reshape(-1, 1, 28, 28))
        return self.linear(torch.flatten(self.pool(x), 1))


class ResidualNet(nn.Module):
    """A classifier of 28x28 images with a shortcut: a small network in the manner of MobileNetV2.

    Takes and returns what VerySimpleNet does. After a convolution of 5x5 with stride 4, `block`
    (a depthwise convolution of 3x3, a pointwise one of 1x1, BatchNorm after both, ReLU6 between
    them) is added to its own input. `pool` takes means, `linear` turns them into logits.
    Source: Sandler et al. 2018, section 3.3, without the expansion.
    """

    def __init__(self, channels=16):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, kernel_size=5, stride=4, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.pool = nn.AvgPool2d(kernel_size=3, stride=2)
        self.linear = nn.Linear(channels * 3 * 3, 10)

    def forward(self, img):
        x = torch.relu(self.norm(self.conv(img.reshape(-1, 1, 28, 28))))
        x = x + self.block(x)
        return self.linear(torch.flatten(self.pool(x), 1))


def build_model(model_class, seed):
    """Return a float32 `model_class()` whose initial weights come from `seed`.

    They are drawn in float64 and rounded: drawn in float32, their last bit depends on the CPU.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        return model_class().float()
    finally:
        torch.set_default_dtype(dtype)
