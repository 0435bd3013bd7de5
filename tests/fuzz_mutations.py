"""Files of integer models, damaged in many ways: what tests.fuzz gives to the reader.

Each function of KINDS takes a random.Random and the content of a valid file, and returns that of
another. Those of SEALED give the arrays a new checksum: only the checks behind it can refuse them.
"""

import bz2
import functools
import io
import json
import lzma
import struct
import warnings
import zipfile
import zlib

import numpy as np

from qhelpers.integer.file import MOST_BYTES, digest, save_integer_model
from qhelpers.integer.layers import Conv2d, Linear, MaxPool2d, QParams, ReLU, Reshape
from qhelpers.integer.model import IntegerModel

EDGES = [0, 1, -1, 2, 7, 64, 1000, 2**16, 2**31 - 1, 2**31, 2**63, 10**30, -(2**63)]
FLOATS = [0.0, -0.0, 1.5, 1e-45, 1e-38, 1e-30, 1e30, 3e38, 1e300, -1.0]
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]
OTHERS = [None, True, False, "", "1", "a" * 50, [], [2], [2, 2], [[2], [2]], {}, {"a": 1}]
WINDOWS = ["kernel_size", "stride", "padding", "dilation"]
TYPES = ["<f4", ">f4", "<f8", "<f2", "|u1", "|i1", "<i8", "<u4", "|b1", "<c8", "<M8[s]", "|S1",
         "<U1", "|V1", "|V0", "|O", "<U0", "|S2147483647", "|V999999999999", "f4,f4", "(2,)f4",
         "(1000000000,1000000000)f4", ",".join(["i1"] * 500)]  # fmt: skip


def valid_models():
    """Return two small integer models, together with every kind of layer and 2 to 8 bits."""
    rng = np.random.default_rng(0)
    images, logits = QParams(0.03, 128, 255), QParams(0.02, 128, 255)
    hidden = [QParams(0.003, 5, 255), QParams(0.003, 120, 255), QParams(0.01, 7, 255)]

    def weighted(bits, *shape):
        half = 2 ** (bits - 1)
        return {
            "weight": rng.integers(-half, half, shape, np.int8),
            "weight_bits": bits,
            "weight_scale": rng.uniform(0.01, 0.02, shape[:1]).astype(np.float32),
            "bias": rng.normal(0, 0.1, shape[:1]).astype(np.float32),
        }

    window = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    first = Conv2d(
        "first", **weighted(3, 4, 1, 3, 3), before=images, after=hidden[0], relu=True,
        **window | {"stride": (2, 2)}, groups=1,
    )  # fmt: skip
    second = Conv2d(
        "second", **weighted(4, 6, 2, 3, 3), before=hidden[0], after=hidden[1], relu=False,
        **window, groups=2,
    )  # fmt: skip
    last = weighted(8, 10, 96) | {"weight_scale": np.array(0.01, np.float32)}
    conv = IntegerModel(
        [
            first,
            MaxPool2d("pool", (3, 3), (2, 2), (1, 1), (1, 1)),
            second,
            ReLU("relu", 120),
            MaxPool2d("smaller", (2, 2), (2, 2), (1, 1), (1, 1)),
            Reshape("flat", (-1,)),
            Linear("last", **last, before=hidden[1], after=logits, relu=False),
        ]
    )
    mlp = IntegerModel(
        [
            Reshape("flat", (784,)),
            Linear("hidden", **weighted(2, 8, 784), before=images, after=hidden[2], relu=True),
            Linear("last", **weighted(5, 10, 8), before=hidden[2], after=logits, relu=False),
        ]
    )
    return conv, mlp


def write_models(folder):
    """Save the valid models in a folder, and return the paths."""
    paths = []
    for number, model in enumerate(valid_models()):
        paths.append(folder / f"valid-{number}.npz")
        save_integer_model(model, paths[-1])
    return paths


# The bytes of the file, or of one array in it.


def flip_bits(rng, content):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def overwrite(rng, content):
    start, length = rng.randrange(len(content)), rng.choice([1, 2, 4, 8, 50])
    new = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])
    return (content[:start] + new + content[start + length :])[: len(content)]


def truncate(rng, content):
    return content[: rng.randrange(len(content))]


def insert(rng, content):
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.choice([1, 2, 8, 100])) + content[start:]


def cut_out(rng, content):
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice([1, 2, 8, 100]) :]


def change_bytes(rng, content):
    return rng.choice([flip_bits, overwrite, truncate, insert, cut_out])(rng, content)


# The members of the zip, which is written anew, so that its CRCs are right.


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zipped(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def in_members(change):
    """Return a kind of mutation from a function that changes the list of (name, bytes)."""

    def mutate(rng, content):
        members = members_of(content)
        change(rng, members)
        return zipped(members)

    return mutate


def remove_member(rng, members):
    del members[rng.randrange(len(members))]


def duplicate_member(rng, members):
    name, data = rng.choice(members)
    members.insert(rng.randrange(len(members) + 1), (name, change_bytes(rng, data)))


def rename_member(rng, members):
    at, (other, _) = rng.randrange(len(members)), rng.choice(members)
    names = ["", "/", "..", "../../x.npy", "1.weight", "99.bias.npy", "a" * 60_000, "é\0x.npy"]
    members[at] = (rng.choice([other, other.removesuffix(".npy"), *names]), members[at][1])


def swap_members(rng, members):
    one, two = rng.sample(range(len(members)), 2)
    (a, first), (b, second) = members[one], members[two]
    members[one], members[two] = (a, second), (b, first)


def change_member(rng, members):
    at = rng.randrange(len(members))
    members[at] = members[at][0], change_bytes(rng, members[at][1])


def many_members(rng, members):
    count = rng.choice([100, 3000, 20_000])
    members.extend((f"{n}.more.npy", members[0][1][:128]) for n in range(count))


# The headers of the arrays in it.


def in_header(change):
    """Return a kind of mutation from a function that changes an array's header, a dict, or
    returns the text to write instead."""

    def mutate(rng, content):
        members = members_of(content)
        at = rng.randrange(len(members))
        name, data = members[at]
        file = io.BytesIO(data)
        np.lib.format.read_magic(file)
        shape, order, dtype = np.lib.format.read_array_header_1_0(file)
        fields = {"descr": dtype.str, "fortran_order": order, "shape": shape}
        text = (change(rng, fields) or repr(fields)).encode()[:65_535]
        version = bytes(rng.choice([(1, 0)] * 8 + [(2, 0), (3, 0), (0, 0), (255, 255)]))
        header = b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text
        members[at] = name, header + file.read()
        return zipped(members)

    return mutate


def header_shape(rng, fields):
    size = int(np.prod(fields["shape"]))
    fields["shape"] = rng.choice([
        (size, 1), (1,) * 70 + (size,), (0, 10**18), (2**32, 2**32), (2**63, 2), (size + 1,), (),
        (size - 1,), (float(size),), (True,), size, None, ("a",), [size], (10**4000,), (size, 0),
    ])  # fmt: skip


def header_negative(rng, fields):
    size = int(np.prod(fields["shape"]))
    fields["shape"] = rng.choice([(-1, -size), (-size,), (-1,), (-(2**63), -1, size), (-1, 0)])


def header_huge(rng, fields):
    fields["shape"] = tuple(rng.choice([10**9, 2**40, 2**63, 10**30]) for _ in range(3))


def header_dtype(rng, fields):
    fields["descr"] = rng.choice([*TYPES, [("a", "<f4")], [("a", "|O")], 7, None, [], ("<f4", 2)])


def header_object(rng, fields):
    fields["descr"] = rng.choice(["|O", "O", "object", [("a", "|O")], ("|O", (2,))])


def header_order(rng, fields):
    fields["fortran_order"] = rng.choice([True, 1, "yes", None])


def header_text(rng, fields):
    text = repr(fields)
    return rng.choice([
        "(" * 5000, "-" * 9000 + "1", "[" * 150 + "]" * 150, "{" * 90, text + "\0", text[1:],
        text.replace("shape", "shap"), text.replace("}", ", 'more': 1}"), "__import__('os')",
        text + " " * 60_000, "1" * 9000, "{**{}}", "9**9**9", "", "\xff" * 20, "+".join("1" * 4000),
    ])  # fmt: skip


# The arrays and the layers, with a checksum that fits.


def resealed(change):
    """Return a kind of mutation from a function that changes arrays and structure.

    It may return the text of the structure to be written instead.
    """

    def mutate(rng, content):
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "sha256"}
        structure = json.loads(arrays["structure"].tobytes())
        text = change(rng, arrays, structure)
        if text is None:
            text = json.dumps(structure).encode()
        arrays["structure"] = np.frombuffer(text, np.uint8)
        file = io.BytesIO()
        np.savez_compressed(file, **arrays, sha256=digest(arrays))
        return file.getvalue()

    return mutate


def an_array(rng, arrays):
    return rng.choice([name for name in arrays if name != "structure"])


def array_values(rng, arrays, structure):
    name = an_array(rng, arrays)
    array = arrays[name]
    data = overwrite(rng, flip_bits(rng, array.tobytes()))
    arrays[name] = np.frombuffer(data, array.dtype).reshape(array.shape)


def array_floats(rng, arrays, structure):
    name = rng.choice([name for name in arrays if arrays[name].dtype.kind == "f"])
    array = arrays[name].reshape(-1).copy()
    array[rng.randrange(array.size)] = np.float32(rng.choice(FLOATS[:-3] + [3e38] + NOT_FINITE))
    arrays[name] = array.reshape(arrays[name].shape)


def array_dtype(rng, arrays, structure):
    name = an_array(rng, arrays)
    kind = rng.choice(["<f4", ">f4", "<f8", "|u1", "|i1", "<i8", "|b1", "<c8", "<U2", "|V1"])
    arrays[name] = arrays[name].astype(kind)


def array_shape(rng, arrays, structure):
    name = an_array(rng, arrays)
    array = arrays[name].reshape(-1)
    arrays[name] = rng.choice([
        array[:0], array[:1], array[:-1], np.tile(array, 2), array[:, None], array[None],
        array.reshape(array.shape + (1,) * 60), array[0], np.zeros((0, 10**9), array.dtype),
    ])  # fmt: skip


def json_bytes(rng, arrays, structure):
    return change_bytes(rng, arrays["structure"].tobytes()) or b" "


def some_value(rng, old):
    near = [old + 1, old - 1, old * 2, -old] if type(old) in (int, float) else []
    return rng.choice([rng.choice(each) for each in (EDGES, FLOATS, NOT_FINITE, OTHERS, near)
                       if each])  # fmt: skip


def json_value(rng, arrays, structure):
    """Change one value, however deep in the structure."""
    place, keys = structure, ["layers"]
    while True:
        key = rng.choice(keys)
        inner = place[key]
        keys = [*inner] if isinstance(inner, dict) else []
        if isinstance(inner, list):
            keys = [*range(len(inner))]
        if not keys or rng.random() < 0.1:
            place[key] = some_value(rng, inner)
            return
        place = inner


def a_layer(rng, structure, field):
    return rng.choice([layer for layer in structure["layers"] if field in layer])


def json_window(rng, arrays, structure):
    """Change strides, paddings, dilations and sizes of pools; a model without them gets a pool."""
    if not any("stride" in layer for layer in structure["layers"]):
        fields = {name: [1, 1] for name in WINDOWS}
        structure["layers"].append({"kind": "MaxPool2d", "name": "pool"} | fields)
    for _ in range(rng.choice([1, 1, 2, 4])):
        name = rng.choice(WINDOWS)
        pair = a_layer(rng, structure, name)[name] if name != "kernel_size" else None
        pools = [layer for layer in structure["layers"] if "kernel_size" in layer]
        pair = rng.choice(pools)["kernel_size"] if pair is None else pair
        number = rng.choice([0, 1, 2, 3, 5, 30, 500, 3000, 30_000, *EDGES])
        pair[:] = rng.choice([[number, number], [number, 1], [1, number], [number], [number] * 3])


def json_qparams(rng, arrays, structure):
    """Change codes, in both layers that name them, so that they still follow on one another."""
    layers = [layer for layer in structure["layers"] if "before" in layer]
    old = list(rng.choice(layers)["after"])
    at = rng.randrange(3)
    value = some_value(rng, old[at])
    for layer in layers:
        for name in ("before", "after"):
            if layer[name] == old:
                layer[name] = [*old[:at], value, *old[at + 1 :]]


def json_weight(rng, arrays, structure):
    """Change the shape of a weight, also to another of as many numbers, its bits or its groups."""
    layer = a_layer(rng, structure, "weight")
    shape = layer["weight"]
    choice = rng.randrange(5)
    if choice == 0:
        layer["weight"] = shape[::-1]
    elif choice == 1:
        layer["weight"] = [-n for n in shape[:2]] + shape[2:]
    elif choice == 2:
        layer["weight"] = rng.choice([[0], [], [0, 5], [*shape, 1], [10**9] * 2, [2**40, 0, 3, 3],
                                      [["a"], 10**9], ["a", 10**10], shape * 20])  # fmt: skip
    elif choice == 3:
        layer["weight_bits"] = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, -1, 9, 64, 10**30, 2.0, "4"])
    else:
        layer["groups"] = rng.choice([0, 1, 2, 3, 4, 6, -1, 10**30, 2.0, None])


def json_reshape(rng, arrays, structure):
    layer = a_layer(rng, structure, "shape")
    layer["shape"] = rng.choice([
        [-1, -1], [0], [0, -1], [2**63], [2**32, 2**32], [10**30], [-2], ["a"], [None], [[7, 7]],
        [1.0], [True, -1], [], [1] * 70, [-1, 2**62, 4], [2], [4], [7, -1], [96], [784], "96", 96,
        [28, 28], [2**31, -1], [1, 784], [1, 1, -1], {"784": 1}, [-1] * 2 + [1],
    ])  # fmt: skip


def json_keys(rng, arrays, structure):
    fields = rng.choice([structure, *structure["layers"] * 2])
    key = rng.choice([*fields])
    if rng.random() < 0.5:
        del fields[key]
    else:
        new = rng.choice(["more", "", "__class__", "__post_init__", "weight", "bias", "dimensions"])
        fields[new] = rng.choice([fields[key], *OTHERS])


def json_kind(rng, arrays, structure):
    kinds = ["Linear", "Conv2d", "MaxPool2d", "ReLU", "Reshape", "QParams", "object", "", None, []]
    rng.choice(structure["layers"])["kind"] = rng.choice(kinds)


def json_order(rng, arrays, structure):
    """Remove, repeat and exchange layers; the arrays follow theirs."""
    layers = structure["layers"]
    order = [*range(len(layers))]
    choice = rng.randrange(4)
    at = rng.choice(order)
    if choice == 0:
        del order[at]
    elif choice == 1:
        order[at:at] = [at] * rng.choice([1, 2] * 10 + [50, 1200])
    elif choice == 2:
        rng.shuffle(order)
    else:
        order[at + 1 :] = []
    structure["layers"] = [layers[n] for n in order]
    old = {name: arrays.pop(name) for name in [*arrays] if name != "structure"}
    for new, n in enumerate(order):
        for name, array in old.items():
            if name.startswith(f"{n}."):
                arrays[f"{new}.{name.partition('.')[2]}"] = array


def json_nesting(rng, arrays, structure):
    depth = rng.choice([10, 900, 5000, 100_000])
    deep = rng.choice(["[", '{"a":']) * depth
    text = json.dumps(structure)
    whole = [deep, "[" * depth + "]" * depth, text.replace("[", "[" * depth, 1), text[:-1] + deep]
    return rng.choice(whole).encode()


def json_literals(rng, arrays, structure):
    """Write what Python's json takes and other readers don't."""
    text = json.dumps(structure)
    return rng.choice([
        text.replace("255", "9" * 5000), text.replace("255", "NaN"), text.replace("255", "1e999"),
        text.replace("1]", "-Infinity]"), text.replace('"name"', '"kind"'), "NaN", "null", "7",
        text.replace("255", "255.0"), "\ufeff" + text, text.replace("255", '"255"'), '"layers"',
        text.replace(": true", ": 1").replace(": false", ": 0"), text.replace('"last"', "{}"),
        text.replace('"last"', f'"{"x" * 10**6}"'), text + "\0", text.replace("1", "1" * 300),
    ]).encode(rng.choice(["utf-8", "utf-8", "utf-16", "utf-32"]))  # fmt: skip


# Few bytes that stand for many.

ZEROS = 2**20
REPEATS = 1200  # so that one that is unpacked whole exceeds a gigabyte


@functools.cache
def bombs():
    """Return zeros as deflate, bzip2 and LZMA pack them."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(ZEROS)) + deflate.flush(zlib.Z_FULL_FLUSH)
    packed = {
        zipfile.ZIP_DEFLATED: block * REPEATS + b"\x03\x00",
        zipfile.ZIP_BZIP2: bz2.compress(bytes(ZEROS)) * 8,
    }
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**16}]
    coder = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    properties = lzma._encode_filter_properties(filters[0])
    head = b"\x09\x04" + struct.pack("<H", len(properties)) + properties
    data = coder.compress(bytes(16 * ZEROS)) + coder.flush()
    return packed | {zipfile.ZIP_LZMA: head + data}


def bomb_that_lies(rng, content):
    """Give an array far more zeros than the zip's directory says; the CRC is of what it says."""
    members = members_of(content)
    at = rng.randrange(len(members))
    method, packed = rng.choice([*bombs().items()])
    stated = rng.choice([0, 1, 128, 10**4, 10**6])
    members[at] = members[at][0], packed
    directory = bytearray(zipped(members))
    start = -1
    for _ in range(at + 1):
        start = directory.index(b"PK\x01\x02", start + 1)
    struct.pack_into("<H", directory, start + 10, method)
    struct.pack_into("<L", directory, start + 16, zlib.crc32(bytes(stated)))
    struct.pack_into("<L", directory, start + 24, stated)
    return bytes(directory)


def bomb(rng, content):
    """Add an array of zeros that is as large as it says."""
    members = members_of(content)
    size = rng.choice([MOST_BYTES, MOST_BYTES // 2, MOST_BYTES // 8, 10**6])
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(header, fields)
    members.append((rng.choice(["more.npy", members[0][0]]), header.getvalue() + bytes(size)))
    return zipped(members, zipfile.ZIP_DEFLATED)


def bomb_of_weights(rng, arrays, structure):
    """Make a weight as large as the reader allows, or larger, of as few bits as it allows."""
    numbers = [n for n, layer in enumerate(structure["layers"]) if "weight" in layer]
    number = rng.choice(numbers)
    layer = structure["layers"][number]
    bits = rng.choice([1, 2, 2, 4, 8])
    count = (MOST_BYTES - 2**16) // rng.choice([1, 4, 32]) * (8 // bits)
    outputs = rng.choice([1, len(arrays[f"{number}.bias"]), 1000])
    inputs = count // outputs
    layer["weight"] = [outputs, inputs] if len(layer["weight"]) == 2 else [outputs, inputs, 1, 1]
    layer["weight_bits"] = bits
    arrays[f"{number}.weight"] = np.zeros(-(-outputs * inputs // (8 // bits)), np.uint8)
    arrays[f"{number}.bias"] = np.zeros(outputs, np.float32)
    arrays[f"{number}.weight_scale"] = np.ones(outputs, np.float32)


def bomb_of_outputs(rng, arrays, structure):
    """Give the first layer with weights very many outputs, from few inputs."""
    number = next(n for n, layer in enumerate(structure["layers"]) if "weight" in layer)
    layer = structure["layers"][number]
    outputs = rng.choice([10**3, 10**4, 10**5, 10**6])
    inputs = 1 if "groups" in layer else 784
    if outputs * inputs > MOST_BYTES:
        outputs = MOST_BYTES // inputs // 2
    layer["weight"] = [outputs, inputs] + ([1, 1] if "groups" in layer else [])
    layer["weight_bits"] = 8
    if "groups" in layer:
        layer["groups"] = rng.choice([1, outputs])
    arrays[f"{number}.weight"] = np.ones(outputs * inputs, np.uint8)
    arrays[f"{number}.bias"] = np.ones(outputs, np.float32)
    arrays[f"{number}.weight_scale"] = np.ones(outputs, np.float32)


RAW = {
    "bits flipped": flip_bits,
    "bytes overwritten": overwrite,
    "truncated": truncate,
    "bytes inserted": insert,
    "bytes cut out": cut_out,
}
REPACKED = {
    "member removed": in_members(remove_member),
    "member duplicated": in_members(duplicate_member),
    "member renamed": in_members(rename_member),
    "members swapped": in_members(swap_members),
    "member's bytes": in_members(change_member),
    "header: shape": in_header(header_shape),
    "header: negative": in_header(header_negative),
    "header: huge": in_header(header_huge),
    "header: dtype": in_header(header_dtype),
    "header: object": in_header(header_object),
    "header: order": in_header(header_order),
    "header: text": in_header(header_text),
}
SEALED = {
    "array: values": resealed(array_values),
    "array: floats": resealed(array_floats),
    "array: dtype": resealed(array_dtype),
    "array: shape": resealed(array_shape),
    "JSON: bytes": resealed(json_bytes),
    "JSON: a value": resealed(json_value),
    "JSON: windows": resealed(json_window),
    "JSON: codes": resealed(json_qparams),
    "JSON: weight": resealed(json_weight),
    "JSON: reshape": resealed(json_reshape),
    "JSON: keys": resealed(json_keys),
    "JSON: kind": resealed(json_kind),
    "JSON: layers": resealed(json_order),
    "JSON: nesting": resealed(json_nesting),
    "JSON: literals": resealed(json_literals),
}
BOMBS = {
    "bomb": bomb,
    "bomb that lies": bomb_that_lies,
    "bomb of members": in_members(many_members),
}
SEALED_BOMBS = {
    "bomb of weights": resealed(bomb_of_weights),
    "bomb of outputs": resealed(bomb_of_outputs),
}
QUICK = RAW | REPACKED | SEALED
SLOW = BOMBS | SEALED_BOMBS  # to make and to read
KINDS = QUICK | SLOW
SEALED |= SEALED_BOMBS


def kind_of(index):
    """Return the kind of the mutation of this number: all in turn, and few of the slow ones."""
    if index % 40 == 39:
        return [*SLOW][index // 40 % len(SLOW)]
    return [*QUICK][index % len(QUICK)]
