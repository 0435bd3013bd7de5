"""Integer models on disk: one compressed .npz, without pickle, that is checked when it is read."""

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from qhelpers.files import whole_file
from qhelpers.integer import IntegerModel
from qhelpers.integer_layers import Conv2d, Linear, MaxPool2d, QParams, ReLU, Reshape
from qhelpers.packing import pack, unpack

FORMAT = "qhelpers integer model, version 1"
KINDS = {kind.__name__: kind for kind in (Linear, Conv2d, MaxPool2d, ReLU, Reshape)}
MOST_BYTES = 2**28  # of all arrays together, so that a file can't ask for gigabytes


def save_integer_model(model, path):
    """Write `model`, an IntegerModel, to `path`; a file that is there is replaced, whole.

    The weights are packed, then everything is compressed. NumPy's `load` can read the arrays.
    The arithmetic and the products aren't saved: they are chosen when it is loaded.
    Raises OSError, which names the file, where it can't be written.
    """
    described, arrays = [], {}
    for number, layer in enumerate(model.layers):
        fields = {"kind": type(layer).__name__}
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


def load_integer_model(path, arithmetic="fbgemm", products=None):
    """Return the IntegerModel that `save_integer_model` wrote to `path`.

    arithmetic, products: as for IntegerModel.
    Raises OSError where the file can't be read, and ValueError where it is not whole, doesn't
    fit together, or is another's.
    """
    content = Path(path).read_bytes()
    try:
        layers = read_layers(read_arrays(content))
    except Exception as error:  # whatever zipfile, NumPy and json raise for damaged files
        raise ValueError(f"{path} is not an integer model that qhelpers saved, or is damaged: "
                         f"{error}") from error  # fmt: skip
    return IntegerModel(layers, arithmetic, products)


def read_arrays(content):
    """Return the arrays in a .npz by name, and take none that is larger than the file says."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if total > MOST_BYTES:
            raise ValueError(f"its arrays have {total:,} bytes; {MOST_BYTES:,} are allowed")
        return {
            entry.filename.removesuffix(".npy"): read_array(archive, entry) for entry in entries
        }


def read_array(archive, entry):
    data = io.BytesIO(archive.read(entry))
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError(f"{entry.filename} has an unknown version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject or size != entry.file_size - data.tell():
        raise ValueError(f"{entry.filename} doesn't hold {dtype} of shape {shape}")
    data.seek(0)
    return np.lib.format.read_array(data, allow_pickle=False)


def read_layers(arrays):
    expected = arrays.pop("sha256").tobytes()
    if digest(arrays).tobytes() != expected:
        raise ValueError("its checksum is another")
    structure = json.loads(arrays.pop("structure").tobytes())
    if structure["format"] != FORMAT:
        raise ValueError(f"its format is {structure['format']!r}; this is {FORMAT!r}")
    layers = [
        read_layer(fields, arrays, number) for number, fields in enumerate(structure["layers"])
    ]
    if arrays:
        raise ValueError(f"it holds more: {[*arrays]}")
    IntegerModel(layers)  # checks that they follow on one another
    return layers


def read_layer(fields, arrays, number):
    kind = KINDS[fields.pop("kind")]
    for field in dataclasses.fields(kind):
        if field.name == "weight":
            shape = fields["weight"]
            packed, count = arrays.pop(f"{number}.weight"), int(np.prod(shape, dtype=object))
            fields["weight"] = unpack(packed, fields["weight_bits"], count).reshape(shape)
        elif field.type is np.ndarray:
            fields[field.name] = arrays.pop(f"{number}.{field.name}")
        elif field.type is QParams:
            fields[field.name] = QParams(*fields[field.name])
        elif field.type is tuple:
            fields[field.name] = tuple(fields[field.name])
    return kind(**fields)


def digest(arrays):
    """Return the SHA-256 sum of the arrays' names, types, shapes and bytes, as an array."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return np.frombuffer(total.digest(), np.uint8)
