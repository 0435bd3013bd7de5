"""Training, testing, and loading what was trained before."""

import contextlib
import hashlib
import inspect
import io
import sys
import warnings
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from qhelpers.files import project_folder, remove_abandoned_parts, whole_file


@contextlib.contextmanager
def one_thread():
    """Let PyTorch compute on one thread, which for networks as small as these is the fastest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def train(
    model,
    data,
    epochs=1,
    *,
    batch_size=64,
    learning_rate=1e-3,
    seed=0,
    total_iterations_limit=None,
):
    """Train `model` in place with Adam and cross-entropy; return the loss of each iteration.

    An epoch is as many iterations as one pass through MNIST takes; the order of the images
    comes from `seed`. `total_iterations_limit`, where given, ends the training sooner.
    The arithmetic is float64, so that every machine gets the same weights; the model
    that comes out is float32, and in training mode.
    """
    iterations = epochs * data.steps_per_epoch(batch_size)
    if total_iterations_limit is not None:
        iterations = min(iterations, total_iterations_limit)
    model.double().train()
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    history, loss_sum = [], 0.0
    try:
        # Not to stderr: a notebook shows that in red.
        with tqdm(total=iterations, desc="Training", unit="batch", file=sys.stdout) as progress:
            for images, labels in data.batches(batch_size, iterations, seed):
                model.zero_grad()
                loss = cross_entropy(model(images.to(device).double()), labels.to(device))
                loss.backward()
                optimizer.step()
                history.append(loss.item())
                loss_sum += history[-1]
                progress.set_postfix(loss=f"{loss_sum / len(history):.3f}", refresh=False)
                progress.update()
    finally:  # an interrupted model is float32 too
        model.float()
    return history


@torch.no_grad()
@one_thread()
def test(model, data, total_iterations=None, *, batch_size=1000):
    """Return the accuracy of `model` on the test images, from 0 to 1.

    `total_iterations`, where given, is how many batches to test, from the first on.
    Leaves the model in evaluation mode.
    """
    images, labels = data.test_images, data.test_labels
    if total_iterations is not None:
        images = images[: total_iterations * batch_size]
    model.eval()
    device = next(model.parameters(), labels).device
    predictions = [model(batch.to(device)).argmax(1).cpu() for batch in images.split(batch_size)]
    return (torch.cat(predictions) == labels[: len(images)]).double().mean().item()


test.__test__ = False  # pytest would take it for a test of its own


def train_or_load(model, data, epochs=1, *, batch_size=64, learning_rate=1e-3, seed=0):
    """Do what `train` does, or load the model that the same call trained before.

    Prints the same lines and returns the same losses either way. The trained model is kept
    in `build/checkpoints` of the project. A checkpoint is used only if everything that
    determines the result is unchanged: the model and its initial weights, the sources of its
    classes and of qhelpers, the training data, the arguments, and torch's version. One that
    belongs to another training, is damaged, or can't be read is refused with a warning. If it
    can't be written, a warning says so, and the training still counts.
    """
    options = dict(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    key = checkpoint_key(model, data, options)
    name = f"{type(model).__name__}-{data.name}-{key[:12]}.pt"
    path = project_folder() / "build" / "checkpoints" / name
    history = load_checkpoint(path, key, model)
    if history is None:
        history = train(model, data, **options)
        try:
            save_checkpoint(path, key, model, history)
        except OSError as error:
            warnings.warn(f"the next run will train again: {error}", stacklevel=2)
    print(
        f"{type(model).__name__}: {len(history)} iterations, loss {mean(history[:100]):.3f} "
        f"over the first 100, {mean(history[-100:]):.3f} over the last 100."
    )
    return history


def mean(numbers):
    return sum(numbers) / len(numbers)


def checkpoint_key(model, data, options):
    """Return the SHA-256 sum, as text, of all that decides how a training ends."""
    decides = [str(model), options, torch.float64, torch.__version__, *sources_of(model)]
    digest = hashlib.sha256(repr(decides).encode())
    images = {"images": data.train_images, "labels": data.train_labels}
    return add_tensors(digest, images | model.state_dict())


def sources_of(model):
    """Yield the sources of qhelpers, and of the classes in `model` that others have written."""
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        yield path.read_text(encoding="utf-8")
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        if not kind.__module__.startswith(("torch.", "qhelpers.")):
            with contextlib.suppress(OSError, TypeError):  # typed into a console
                yield inspect.getsource(kind)
    for module in model.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield module.code


def content_sum(checkpoint):
    """Return the SHA-256 sum of a checkpoint as text; torch.load doesn't notice changed bytes."""
    inputs = [checkpoint["key"], checkpoint["history"]]
    return add_tensors(hashlib.sha256(repr(inputs).encode()), checkpoint["state_dict"])


def add_tensors(digest, state):
    for name, tensor in state.items():
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def load_checkpoint(path, key, model):
    """Load the checkpoint at `path` into `model`; return its losses, or None if there is none.

    One that is refused leaves the model as it was; a warning says why.
    """
    try:
        checkpoint = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        whole = checkpoint["sha256"] == content_sum(checkpoint)
        if whole and checkpoint["key"] == key:
            model.load_state_dict(checkpoint["state_dict"])
            remove_abandoned_parts(path)
            return checkpoint["history"]
        reason = "belongs to another training" if whole else "is damaged"
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"can't be read ({error.strerror})"
    except Exception:  # whatever torch.load raises for damaged files
        reason = "is damaged"
    warnings.warn(f"{path} {reason}; training again", stacklevel=3)
    return None


def save_checkpoint(path, key, model, history):
    checkpoint = {"key": key, "state_dict": model.state_dict(), "history": history}
    content = io.BytesIO()  # torch.save says less about a full disk than Python does
    torch.save(checkpoint | {"sha256": content_sum(checkpoint)}, content)
    with whole_file(path) as part:
        part.write_bytes(content.getvalue())
