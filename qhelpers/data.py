"""The images the course trains on: MNIST, or scikit-learn's digits where MNIST can't be had."""

import gzip
import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from qhelpers.files import project_folder, remove_abandoned_parts, whole_file

MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels, black 0 to white 1
MNIST_TRAINING_IMAGES = 60_000
DOWNLOAD_TIMEOUT = 10  # seconds without a byte from a mirror before the next is asked
CHUNK = 2**20  # bytes
RAW_MD5 = {  # torchvision knows the sums of the .gz files, but not of what is inside
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class MNISTUnavailable(RuntimeError):
    """MNIST is not on this machine, or is damaged, and can't be downloaded."""


@dataclass(frozen=True, eq=False)
class Data:
    """Images and labels, in memory.

    name: "mnist" or "digits".
    train_images, test_images: float32, shape (N, 1, 28, 28), normalised by MEAN and STD.
    train_labels, test_labels: int64, shape (N,), the digits 0 to 9.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def steps_per_epoch(self, batch_size):
        """The batches in one epoch of MNIST; for the digits, too, so that both take as many."""
        return -(-MNIST_TRAINING_IMAGES // batch_size)

    def batches(self, batch_size, steps, seed=0):
        """Return an iterator over `steps` pairs (images, labels) of training data.

        The images come in an order shuffled from `seed`, anew in each pass through them.
        The last batch of a pass may be smaller than `batch_size`.
        """
        return itertools.islice(self._endless_batches(batch_size, seed), steps)

    def _endless_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.train_images), generator=generator)
            for chunk in order.split(100 * batch_size):  # picking one batch at a time is slower
                images, labels = self.train_images[chunk], self.train_labels[chunk]
                yield from zip(images.split(batch_size), labels.split(batch_size))


def load_data():
    """Load MNIST, or the digits where MNIST can't be had; print one line that says which.

    The environment variable QHELPERS_DATASET, "mnist" or "digits", forces one of the two.
    Raises MNISTUnavailable if MNIST is forced and can't be had, ValueError if the
    variable holds anything else.
    """
    wanted = os.environ.get("QHELPERS_DATASET", "")
    if wanted not in ("", "mnist", "digits"):
        raise ValueError(f"QHELPERS_DATASET is {wanted!r}; it may be mnist, digits or unset")
    reason = "QHELPERS_DATASET=digits asks for them"
    if wanted != "digits":
        try:
            data = load_mnist()
            print("Data: MNIST, 60,000 training and 10,000 test images.")
            return data
        except MNISTUnavailable as error:
            if wanted == "mnist":
                raise MNISTUnavailable(
                    f"{error}. Connect to the network, put the four original .gz files into "
                    f"{data_folder() / 'MNIST' / 'raw'}, or set QHELPERS_DATASET=digits"
                ) from error
            reason = str(error)
    print(
        f"Data: scikit-learn's 1,797 digits, not MNIST: {reason}. "
        "The numbers in the text are MNIST's."
    )
    return load_digits()


def load_mnist():
    """Return MNIST as Data, downloaded if necessary; raise MNISTUnavailable if that fails."""
    # Slow to import, so only here. The class MNIST would read the folder `processed` of an old
    # torchvision instead, if there is one, and nothing verifies that.
    from torchvision.datasets.mnist import read_image_file, read_label_file

    folder = data_folder() / "MNIST" / "raw"
    for name in RAW_MD5:
        provide_file(folder / name)
    tensors = []
    for subset in ("train", "t10k"):
        images = read_image_file(folder / f"{subset}-images-idx3-ubyte")
        tensors += [
            normalise(images[:, None] / 255),
            read_label_file(folder / f"{subset}-labels-idx1-ubyte"),
        ]
    return Data("mnist", *tensors)


def load_digits():
    """Return scikit-learn's 8x8 digits, resized to 28x28: 1,437 to train on, 360 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    images = torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear")
    split = train_test_split(
        normalise(images).numpy(),
        digits.target,
        test_size=360,
        stratify=digits.target,
        random_state=0,
    )
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)
    return Data("digits", train_images, train_labels, test_images, test_labels)


def normalise(images):
    """Return images whose pixels lie from 0 to 1 as the original notebook normalises them."""
    return (images - MEAN) / STD


def data_folder():
    """Return the folder that holds MNIST/raw: QHELPERS_DATA, or `data` in the project."""
    return Path(os.environ.get("QHELPERS_DATA") or project_folder() / "data").expanduser()


def provide_file(raw):
    """Make sure that the MNIST file `raw` is there, whole and unchanged.

    A missing or damaged file is unpacked from the .gz beside it; a missing or damaged .gz is
    downloaded. Raises MNISTUnavailable if the download fails.
    """
    packed = raw.with_name(raw.name + ".gz")
    try:
        if has_md5(raw, RAW_MD5[raw.name]):
            remove_abandoned_parts(raw)
            remove_abandoned_parts(packed)
            return
    except OSError as error:
        raise MNISTUnavailable(f"{raw} can't be read ({error.strerror})") from error
    state = "is damaged" if raw.exists() else "is missing"
    try:
        download(packed)
        unpack(packed, raw)
    except (OSError, ValueError) as error:
        # The system's message names the file; that of requests is three lines long.
        reason = error if getattr(error, "errno", None) else type(error).__name__
        raise MNISTUnavailable(
            f"{raw.name} {state} and could not be downloaded or unpacked ({reason})"
        ) from error


def has_md5(path, md5):
    """Return whether there is a file at `path` with this MD5 sum."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == md5


def download(packed):
    """Download the .gz file `packed` from the first mirror that gives it, unless it is there.

    Raises OSError or ValueError, the last mirror's, where all fail.
    """
    import requests
    from torchvision.datasets import MNIST

    md5 = dict(MNIST.resources)[packed.name]
    if has_md5(packed, md5):
        return
    for number, mirror in enumerate(MNIST.mirrors, 1):
        try:
            with requests.get(
                mirror + packed.name, stream=True, timeout=DOWNLOAD_TIMEOUT
            ) as answer:
                answer.raise_for_status()
                write_verified(answer.iter_content(CHUNK), packed, md5)
            return
        except (OSError, ValueError):
            if number == len(MNIST.mirrors):
                raise


def unpack(packed, raw):
    """Unpack the .gz file `packed` to `raw`."""
    with gzip.open(packed) as file:
        write_verified(iter(lambda: file.read(CHUNK), b""), raw, RAW_MD5[raw.name])


def write_verified(chunks, path, md5):
    """Write the chunks of bytes to `path`; raise ValueError if their MD5 sum is wrong."""
    with whole_file(path) as part:
        with open(part, "wb") as file:
            file.writelines(chunks)
        if not has_md5(part, md5):
            raise ValueError(f"{path.name} has the wrong MD5 sum")
