"""TensorFlow checkpoints, written here byte by byte: what is read, and what is refused."""

import pathlib
import struct

import numpy as np
import pytest

from lljax import tensors
from lljax.errors import InputError

ARRAYS = {
    "Net/layer/bias": np.float32([1.5, -2.0]),
    "Net/layer/kernel": np.arange(24, dtype=np.float32).reshape(3, 2, 4),
    "Net/layer_1/bias": np.float64([0.1]),
    "Net/layer_1/count": np.int64(-7),
    "Net/layer_1/empty": np.zeros((0, 3), np.float32),
    "Net/layer_1/half": np.float16([1, 2, 3]),
}
DTYPES = {"float32": 1, "float64": 2, "int64": 9, "float16": 19}


def masked_crc(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    crc ^= 0xffffffff
    return ((crc >> 15 | crc << 17) + 0xa282ead8) % 2 ** 32


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def entry(array, shard, offset):
    content = array.tobytes()
    shape = b"".join(field(2, field(1, side)) for side in array.shape)
    crc = struct.pack("<BI", 6 << 3 | 5, masked_crc(content))
    return (field(1, DTYPES[array.dtype.name]) + field(2, shape) + field(3, shard)
            + field(4, offset) + field(5, len(content)) + crc)


def block(pairs, every):
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % every:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:]
        out, last = out + value, key
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(values, compression=0):
    """A LevelDB table with four entries a block and a restart at every third."""
    content, places, pairs = b"", [], sorted(values.items())

    def add(block):
        nonlocal content
        place = varint(len(content)) + varint(len(block))
        block += bytes([compression])
        content += block + struct.pack("<I", masked_crc(block))
        return place

    for i in range(0, len(pairs), 4):
        places.append((pairs[i:i + 4][-1][0], add(block(pairs[i:i + 4], 3))))
    footer = add(block([], 1)) + add(block(places, 1))
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xdb4775248b80fb57)


def write(folder, arrays, shards=1, name="model.ckpt", compression=0, big=False, more=None):
    """Writes a bundle as TensorFlow does; returns its index."""
    data = [b""] * shards
    values = {b"": field(1, shards) + field(2, int(big)) + field(3, field(1, 1))}
    for i, (key, array) in enumerate(sorted(arrays.items())):
        array = np.asarray(array)
        values[key.encode()] = entry(array, i % shards, len(data[i % shards]))
        data[i % shards] += array.tobytes()
    for i, content in enumerate(data):
        (folder / f"{name}.data-{i:05}-of-{shards:05}").write_bytes(content)
    path = folder / f"{name}.index"
    path.write_bytes(table(values | (more or {}), compression))
    return str(path)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_name_of_a_bundle_gives_its_tensors(shards, tmp_path):
    index = write(tmp_path, ARRAYS, shards)
    data = [f"{index[:-6]}.data-{i:05}-of-{shards:05}" for i in range(shards)]
    for path in (index, pathlib.Path(index), index.removesuffix(".index"), *data):
        same(tensors.read(path), ARRAYS)
        assert tensors.files(path) == [index, *data]


def test_what_a_training_keeps_is_left_out(tmp_path):
    extra = ["Net/layer/bias/Adam", "Net/layer/bias/Adam_1", "Net/layer/bias/AdamOptimizer",
             "Net/layer/bias/AdamOptimizer_1", "Net/layer/bias/Momentum", "beta1_power",
             "train/beta2_power_1", "global_step", "train/global_step"]
    kept = {"Adam/kernel": np.float32([1]), "Net/my_global_step": np.float32([2])}
    strings = {b"notes": field(1, 7) + field(5, 3)}
    index = write(tmp_path, ARRAYS | kept | {name: np.float32(0) for name in extra}, more=strings)
    same(tensors.read(index), ARRAYS | kept)
    only = write(tmp_path, {"global_step": np.int64(3)}, name="only")
    assert "lists no weights" in refusal(only)


def test_the_checksum_is_crc_32c():
    crc = 0xe3069283  # of these nine digits, in every description of it
    assert tensors._masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xa282ead8) % 2 ** 32


def refusal(path):
    with pytest.raises(InputError) as error:
        tensors.read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bundles_that_are_not_supported(tmp_path):
    assert "snappy" in refusal(write(tmp_path, ARRAYS, compression=1))
    assert "big-endian" in refusal(write(tmp_path, ARRAYS, big=True))
    slices = {b"sliced": field(1, 1) + field(7, b""), b"\0sliced": b""}
    assert "sliced is stored in slices" in refusal(write(tmp_path, ARRAYS, more=slices))
    assert "data type 14" in refusal(write(tmp_path, ARRAYS, more={b"bf16": field(1, 14)}))


def test_missing_files_are_named(tmp_path):
    index = write(tmp_path, ARRAYS, 2)
    prefix = index.removesuffix(".index")
    (tmp_path / "model.ckpt.data-00001-of-00002").unlink()
    for path in (index, prefix, f"{prefix}.data-00000-of-00002"):
        message = refusal(path)
        assert f"no file '{prefix}.data-00001-of-00002'" in message and index in message
    (tmp_path / "model.ckpt.index").unlink()
    assert f"no file {index!r}" in refusal(f"{prefix}.data-00000-of-00002")
    assert f"no file {prefix!r}" in refusal(prefix)
    (tmp_path / "model.ckpt.meta").touch()
    assert ".index" in refusal(f"{prefix}.meta")


def test_no_damage_goes_unnoticed(tmp_path):
    """Every byte of the index in turn, and its every length: read as it was, or refused."""
    index = write(tmp_path, ARRAYS)
    path, content = pathlib.Path(index), pathlib.Path(index).read_bytes()
    refused = 0
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1:])
        try:
            same(tensors.read(index), ARRAYS)  # the footer's filling, and a block nothing uses
        except InputError as error:
            assert "\n" not in str(error) and index in str(error)
            refused += 1
    assert refused > len(content) - 60
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert index in refusal(index)


def test_damaged_data_are_refused(tmp_path):
    index = write(tmp_path, ARRAYS)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    assert "incomplete" in refusal(index)
    data.write_bytes(content[:9] + b"?" + content[10:])
    assert "checksum of Net/layer/kernel" in refusal(index)
    wrong = entry(np.float32([1, 2]), 0, 0).replace(field(1, 2), field(1, 3), 1)
    data.write_bytes(content)
    assert "entry of wrong is damaged" in refusal(write(tmp_path, ARRAYS, more={b"wrong": wrong}))


def test_the_real_checkpoint(shared):
    folder = shared / "data/weights/retinexnet_tf"
    found = tensors.read(folder / "Decom" / "RetinexNet-tensorflow.index")
    with np.load(folder / "decom.npz") as file:
        same({name: value for name, value in found.items() if name.startswith("DecomNet/")},
             dict(file))
    assert {name.split("/")[0] for name in found} == {"DecomNet", "DenoiseNet", "RelightNet"}
