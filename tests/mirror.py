"""A made-up MNIST of the real format, and a server on this machine that is its only mirror."""

import functools
import gzip
import hashlib
import http.server
import struct

import numpy as np
from torchvision.datasets import MNIST

from qhelpers import data

NAMES = sorted(data.RAW_MD5)


def made_up_file(name, seed, images=20):
    """The bytes of an MNIST file with so many images, or their labels."""
    rng = np.random.default_rng(seed)
    if "images" in name:
        return struct.pack(">iiii", 2051, images, 28, 28) + rng.bytes(images * 28 * 28)
    return struct.pack(">ii", 2049, images) + rng.integers(0, 10, images, dtype=np.uint8).tobytes()


def write_mirror(folder, images=20):
    """Write the four .gz files to `folder`; return the sums of what is in them, and their own."""
    folder.mkdir()
    raw_md5, gz_md5 = {}, []
    for seed, name in enumerate(NAMES):
        content = made_up_file(name, seed, images)
        packed = gzip.compress(content, compresslevel=1, mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        raw_md5[name] = hashlib.md5(content).hexdigest()
        gz_md5.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    return raw_md5, gz_md5


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder at any free port."""

    def __init__(self, folder):
        handler = functools.partial(Handler, directory=folder)
        super().__init__(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def settings(address, raw_md5, gz_md5):
    """What to set, as arguments of setattr, so that this address is the only mirror there is."""
    return [(data, "RAW_MD5", raw_md5), (MNIST, "resources", gz_md5), (MNIST, "mirrors", [address])]
