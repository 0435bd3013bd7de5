"""Integer models on disk: one compressed .npz, without pickle, that is checked when it is read."""

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np

from qhelpers.files import whole_file
from qhelpers.integer.add import Add
from qhelpers.integer.layers import Conv2d, Linear
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.moves import ReLU, Reshape
from qhelpers.integer.packing import pack, unpack
from qhelpers.integer.pools import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from qhelpers.integer.qparams import QParams

FORMAT = "qhelpers integer model, version 2"
CHAINS = "qhelpers integer model, version 1"  # had no inputs: its layers are a chain
LAYERS = (Linear, Conv2d, Add, AvgPool2d, AdaptiveAvgPool2d, MaxPool2d, ReLU, Reshape)
KINDS = {kind.__name__: kind for kind in LAYERS}
# Limits for what a file may ask for, so that reading one never takes gigabytes or minutes.
MOST_BYTES = 2**24  # of the file, and of all arrays together
MOST_WEIGHTS = 2**24  # of all layers together: MOST_BYTES would allow 4 times as many of 2 bits
MOST_LAYERS = 1000
MOST_GROUPS = 10_000  # of all convolutions together
MOST_HEADER = 250  # bytes of what NumPy writes about an array; it parses this as Python


def save_integer_model(model, path):
    """Write `model`, an IntegerModel, to `path`, whole or not at all; replace a file there.

    The weights are packed, then everything is compressed. NumPy's `load` can read the arrays.
    The arithmetic and the products aren't saved: they are chosen when it is loaded.
    Raises ValueError if the model is larger than `load_integer_model` accepts, and OSError,
    which names the file, where it can't be written.
    """
    described, arrays = [], {}
    for number, (layer, inputs) in enumerate(zip(model.layers, model.inputs)):
        fields = {"kind": type(layer).__name__, "inputs": inputs}
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            if field.name == "weight":
                arrays[f"{number}.weight"] = pack(value, layer.weight_bits)
                fields["weight"] = value.shape
            elif isinstance(value, np.ndarray):
                arrays[f"{number}.{field.name}"] = value
            elif isinstance(value, QParams):
                fields[field.name] = [float(value.scale), value.zero_point, value.quant_max]
            else:
                fields[field.name] = value
        described.append(fields)
    text = json.dumps({"format": FORMAT, "layers": described})
    arrays["structure"] = np.frombuffer(text.encode(), np.uint8)
    with whole_file(Path(path)) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays, sha256=digest(arrays))
        file.flush()
        read_graph(read_arrays(part.read_bytes()))  # what can't be read isn't saved


def load_integer_model(path, arithmetic="fbgemm", products=None):
    """Return the IntegerModel that `save_integer_model` wrote to `path`.

    arithmetic, products: as for IntegerModel.
    Raises OSError if the file can't be read, and ValueError if it is damaged,
    inconsistent, or not an integer model.
    """
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        layers, inputs = read_graph(read_arrays(content))
    except Exception as error:  # whatever zipfile, NumPy and json raise for damaged files
        raise ValueError(f"{path} is not an integer model that qhelpers saved, or is damaged: "
                         f"{error}") from error  # fmt: skip
    return IntegerModel(layers, arithmetic, products, inputs)


def check_most(name, count, most):
    if count > most:
        raise ValueError(f"it has {count:,} {name}; {most:,} are allowed")


def read_arrays(content):
    """Return the arrays in a .npz by name, reading no more of each than the file says it has."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        check_most("bytes of arrays", sum(entry.file_size for entry in entries), MOST_BYTES)
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError(f"it has a name twice: {names}")
        return {name: read_array(archive, entry) for name, entry in zip(names, entries)}


def read_array(archive, entry):
    # zipfile unpacks bzip2 and LZMA whole, and the rest too unless it is told how much to read.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename} is compressed, but not by deflate")
    with archive.open(entry) as file:
        data = io.BytesIO(file.read(entry.file_size))
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError(f"{entry.filename} has an unknown version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(data, max_header_size=MOST_HEADER)
    rest = len(data.getbuffer()) - data.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"{entry.filename} doesn't hold {dtype} of shape {shape}")
    data.seek(0)
    return np.lib.format.read_array(data, allow_pickle=False, max_header_size=MOST_HEADER)


def read_graph(arrays):
    """Return the layers that the arrays of a file describe, and what each takes."""
    expected = arrays.pop("sha256").tobytes()
    if digest(arrays).tobytes() != expected:
        raise ValueError("its checksum is wrong")
    structure = json.loads(arrays.pop("structure").tobytes())
    if structure["format"] not in (FORMAT, CHAINS):
        raise ValueError(f"its format is {structure['format']!r}; it must be {FORMAT!r}")
    described = structure["layers"]
    check_most("layers", len(described), MOST_LAYERS)
    weights = [whole_numbers("weight", each["weight"]) for each in described if "weight" in each]
    check_most("weights", sum(abs(math.prod(shape)) for shape in weights), MOST_WEIGHTS)
    groups = [of_type(int, "groups", each["groups"]) for each in described if "groups" in each]
    check_most("groups", sum(groups), MOST_GROUPS)
    inputs = None
    if structure["format"] == FORMAT:
        inputs = [strings("inputs", each.pop("inputs")) for each in described]
    layers = [read_layer(fields, arrays, number) for number, fields in enumerate(described)]
    if arrays:
        raise ValueError(f"it holds arrays of no layer: {[*arrays]}")
    IntegerModel(layers, inputs=inputs)  # checks that each layer takes what others return
    return layers, inputs


def read_layer(fields, arrays, number):
    kind = KINDS[fields.pop("kind")]
    for field in dataclasses.fields(kind):
        name = field.name
        if name not in fields and field.default is not dataclasses.MISSING:
            continue  # files of version 1 have no such field
        if name == "weight":
            shape = whole_numbers(name, fields[name])
            packed, bits = arrays.pop(f"{number}.weight"), fields["weight_bits"]
            fields[name] = unpack(packed, bits, math.prod(shape)).reshape(shape)
        elif field.type is np.ndarray:
            fields[name] = arrays.pop(f"{number}.{name}")
        elif field.type is QParams:
            scale, *codes = fields[name]
            fields[name] = QParams(of_type(float, "scale", scale), *codes)
        elif field.type is tuple:
            fields[name] = whole_numbers(name, fields[name])
        else:
            of_type(field.type, name, fields[name])
    return kind(**fields)


def of_type(kind, name, value):
    """Return a value read from JSON, or raise ValueError if its type is wrong."""
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}; its type must be {kind.__name__}")
    return value


def whole_numbers(name, value):
    return tuple(of_type(int, name, number) for number in of_type(list, name, value))


def strings(name, value):
    return tuple(of_type(str, name, each) for each in of_type(list, name, value))


def digest(arrays):
    """Return the SHA-256 sum of the arrays' names, types, shapes and bytes, as an array."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return np.frombuffer(total.digest(), np.uint8)
