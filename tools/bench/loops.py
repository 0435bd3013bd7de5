"""`train` and `test` compared with the loops of the original notebook."""

import contextlib
import itertools
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST
from tqdm import tqdm

from qhelpers import VerySimpleNet, build_model, test, train
from qhelpers.data import MEAN, STD, data_folder
from qhelpers.timing import times_in_turn
from tools.bench.comparison import OURS, Comparison

BATCH_SIZE = 10
PLAIN = "DataLoader loop"


def comparisons(data, iterations=(100, 300, 1000), images=(1_000, 3_000, 10_000), rounds=5):
    """Yield a comparison for each number of iterations and of images. `data` must be MNIST."""
    loader, test_set = plain_loader(plain_set(train=True)), plain_set(train=False)
    for count in iterations:
        functions = {
            OURS: lambda n: train(new(), data, batch_size=BATCH_SIZE, total_iterations_limit=n),
            PLAIN: lambda n: plain_train(new(), loader, n),
        }
        times = silent_times(functions, count, rounds)
        goals = {PLAIN: 4} if count == max(iterations) else {}
        yield Comparison("training, batches of 10", count, "iterations", times, goals)
    for count in images:
        functions = {
            OURS: lambda n: test(new(), data, n // 1000),
            PLAIN: lambda n: plain_test(new(), plain_loader(Subset(test_set, range(n)))),
        }
        times = silent_times(functions, count, rounds)
        goals = {PLAIN: 60} if count == max(images) else {}
        yield Comparison("testing", count, "images", times, goals)


def new():
    return build_model(VerySimpleNet, 0)


def silent_times(functions, argument, rounds):
    """Return what times_in_turn returns for the functions, silenced."""
    functions = {name: silenced(function) for name, function in functions.items()}
    return times_in_turn(functions, argument, rounds)


def silenced(function):
    """Return the function with its output discarded; it still draws its progress bars."""

    def silently(argument):
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            return function(argument)

    return silently


def plain_set(train):
    """The original notebook's data: decoded and normalised one image at a time."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    return MNIST(data_folder(), train=train, transform=transform)


def plain_loader(dataset):
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)


def plain_train(model, loader, iterations):
    """The original notebook's training loop, in float32, with its running loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_sum = 0.0
    progress = tqdm(itertools.islice(loader, iterations), desc="Epoch 1", total=iterations)
    for number, (images, labels) in enumerate(progress, 1):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss_sum += loss.item()
        progress.set_postfix(loss=loss_sum / number)
        loss.backward()
        optimizer.step()


def plain_test(model, loader):
    """The original notebook's test loop: one comparison at a time."""
    correct = total = 0
    with torch.no_grad():
        for images, labels in tqdm(loader, desc="Testing"):
            for index, logits in enumerate(model(images)):
                if torch.argmax(logits) == labels[index]:
                    correct += 1
                total += 1
    return correct / total
