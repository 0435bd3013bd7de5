"""Models that nobody here wrote, with inputs: the test models of torch's own quantization, and
torchvision's, whose BatchNorms have seen images."""

import inspect
import itertools

import hypothesis
import torch
import torchvision
from torch import nn
from torch.testing._internal import common_quantization as torchs

hypothesis.settings.load_profile("same")  # tests.conftest's; torch's import has loaded another
TWO = (False, True)
# What a class is made with, where it needs something or has several forms.
FORMS = {
    **dict.fromkeys(
        ["AnnotatedConvModel", "AnnotatedConvTransposeModel", "AnnotatedNestedModel",
         "AnnotatedSkipQuantModel", "ManualDropoutQATModel", "ManualLinearQATModel"],
        [("fbgemm",)],
    ),
    "ConvBnAddReluModel": [*itertools.product(TWO, repeat=5)],
    "ConvTWithBNRelu": [*itertools.product(TWO, (1, 2), TWO)],
    "ConvWithBNRelu": [*itertools.product(TWO, (1, 2, 3), TWO)],
    "DenseTopMLP": [(4, 2, 5, 2, 2)],
    "EmbBagWrapper": [(10, 5)],
    "LinearBnLeakyReluModel": [(False,), (True,)],
    "ModelForFusion": [(None,)],
    "RNNCellDynamicModel": [("GRUCell",), ("LSTMCell",), ("RNNReLU",), ("RNNTanh",)],
    "RNNDynamicModel": [("GRU",), ("LSTM",)],
}  # fmt: skip
ROW, IMAGE = (16, 5), (16, 3, 10, 10)
INDICES, OFFSETS = torch.arange(20) % 10, torch.arange(0, 20, 5)
# Tensors, or shapes of random ones, where the class has no example and takes no ROW.
INPUTS = {
    **{
        f"{name}{form}": [(16, 3, *[6] * form[1])]  # with this many axes
        for name in ("ConvTWithBNRelu", "ConvWithBNRelu")
        for form in FORMS[name]
    },
    **dict.fromkeys(
        ["Conv2dPropAnnotaton", "Conv2dWithObsSharingOps", "Conv2dWithTwoLinearPermute",
         "ConvBNReLU", "ConvBnReLU2dAndLinearReLU", "ConvLinearWPermute",
         "ConvWithAdaptiveAvgPool2d", "ManualConvLinearQATModel", "ManualConvLinearSymmQATModel",
         "ModelForFusionWithBias", "ModelMultipleOps", "ModelMultipleOpsNoAvgPool",
         "ModelWithSequentialFusion", "ResNetBase"],
        [IMAGE],
    ),
    "AddInplaceAdd": [ROW, ROW],
    "Conv2dWithCat": [IMAGE, IMAGE],
    "Conv2dWithTwoCat": [(8, 3, 4, 4), (8, 3, 4, 4), (8, 6, 2, 2), (8, 6, 2, 2)],
    "Conv2dWithTwoLinear": [(2, 3, 4, 4)],
    "ConvMaxPool2d": [(16, 2, 6, 6)],
    "DeFusedEmbeddingBagLinear": [INDICES.reshape(4, 5)],
    "DenseTopMLP": [(16, 5), (16, 4)],
    "EmbBagWrapper": [INDICES, OFFSETS],
    "EmbeddingBagModule": [INDICES, torch.arange(0, 21, 5), (20,)],
    "EmbeddingConvLinearModule": [INDICES.reshape(4, 5)],
    "EmbeddingModule": [INDICES],
    "EmbeddingWithStaticLinear": [INDICES, OFFSETS, (4, 4)],
    "LSTMwithHiddenDynamicModel": [(3, 4, 2), [(1, 4, 2), (1, 4, 2)]],
    "ManualEmbeddingBagLinear": [INDICES.reshape(4, 5)],
    "ModelForConvTransposeBNFusion": [(16, 3, 6)],
    "ModelForFusion": [(16, 3, 1, 19)],
    "ModelForLinearBNFusion": [(16, 20)],
    "MulInplaceMul": [ROW, ROW],
    "RNNCellDynamicModel": [(4, 2)],
    "RNNDynamicModel": [(3, 4, 2)],
    "SparseNNModel": [INDICES, OFFSETS, (4, 4)],
    "SubModelForFusion": [(16, 2, 6, 6)],
    "SubModelWithoutFusion": [(16, 2, 6, 6)],
    "ThreeAdd": [ROW] * 4,
}  # fmt: skip


TORCH = {
    name + (str(form) if form else ""): (kind, form)
    for name, kind in {**vars(torchs.TestHelperModules), **vars(torchs)}.items()
    if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__ == torchs.__name__
    for form in FORMS.get(name, [()])
}
TORCHVISION = ("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet",
               "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
               "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
               "vgg11_bn")  # fmt: skip
IMAGES = (16, 3, 96, 96)


def known(name):
    """Return the model of this name in evaluation mode, and a tuple of its inputs."""
    torch.manual_seed(0)
    return torchvision_model(name) if name in TORCHVISION else torch_model(name)


def torch_model(name):
    kind, form = TORCH[name]
    model = kind(*form).eval()
    shapes = INPUTS.get(name) or INPUTS.get(kind.__name__)
    if shapes is None:
        for example in ("get_example_inputs", "example_inputs"):
            if hasattr(model, example):
                return model, getattr(model, example)()
    return model, as_tensors(shapes or [ROW])


def as_tensors(given):
    """Return tensors as they are, a shape as a random tensor, and a list as a tuple of these."""
    if isinstance(given, list):
        return tuple(as_tensors(each) for each in given)
    return given if isinstance(given, torch.Tensor) else torch.randn(given)


def torchvision_model(name):
    options = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}  # the initial weights take minutes
    model = getattr(torchvision.models, name)(**options).train()
    with torch.no_grad():
        for _ in range(3):  # after many, an untrained network subtracts nearly all that it sees
            model(torch.randn(8, *IMAGES[1:]))
    return model.eval(), (torch.randn(IMAGES),)
