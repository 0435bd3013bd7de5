"""How fast `train` and `test` are beside the loops of the original notebook.

Run as `python -m tests.bench`: on one thread, then on as many as torch takes by itself. The
loops take turns, a sixth of an epoch at a time, so that a slow moment of the machine hits all of
them alike. Each shows its progress bar, as it does for a reader; the bars are thrown away.
"""

import contextlib
import itertools
import os
import statistics
import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST
from tqdm import tqdm

from qhelpers import VerySimpleNet, build_model, load_data, test, train
from qhelpers.data import MEAN, STD, data_folder

BATCH_SIZE = 10
ITERATIONS = 1000  # of the 6,000 in an epoch at this batch size
ROUNDS = 7


def plain_loader(train):
    """The original notebook's data: decoded and normalised one image at a time."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    dataset = MNIST(data_folder(), train=train, transform=transform)
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)


def plain_train(model, loader):
    """The original notebook's training loop, in float32, with its running loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_sum = 0.0
    progress = tqdm(itertools.islice(loader, ITERATIONS), desc="Epoch 1", total=ITERATIONS)
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


def seconds(function, *arguments, **options):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        started = time.perf_counter()
        function(*arguments, **options)
        return time.perf_counter() - started


def main():
    data = load_data()
    if data.name != "mnist":
        raise SystemExit("The plain loops need MNIST.")
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}, median of {ROUNDS} (fastest to slowest)")
        compare(data)


def compare(data):
    """Time the loops in turn and print the medians and their ratios."""
    model, loader, test_loader = VerySimpleNet(), plain_loader(True), plain_loader(False)
    options = {"batch_size": BATCH_SIZE, "total_iterations_limit": ITERATIONS}
    times = {"plain train": [], "train": [], "plain test": [], "test": []}
    for _ in range(ROUNDS):
        times["plain train"].append(seconds(plain_train, build_model(VerySimpleNet, 0), loader))
        times["train"].append(seconds(train, build_model(VerySimpleNet, 0), data, **options))
        times["plain test"].append(seconds(plain_test, model, test_loader))
        times["test"].append(seconds(test, model, data))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:<12} {median[name]:8.3f} s   ({min(values):.3f} to {max(values):.3f})")
    print(f"train, in float64, is {median['plain train'] / median['train']:.1f} times as fast")
    print(f"test is {median['plain test'] / median['test']:.0f} times as fast")


if __name__ == "__main__":
    main()
