"""PyTorch files, and TensorFlow checkpoints written here byte by byte: what is read and refused."""

import argparse
import collections
import os
import pathlib
import pickle
import struct
import sys
import zipfile

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


# ---- PyTorch ----


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="writes PyTorch files")


FORMATS = {"archive": True, "stream": False}  # of PyTorch 1.6 and later, and of those before


def save(torch, content, path, form="archive"):
    torch.save(content, path, _use_new_zipfile_serialization=FORMATS[form])
    return str(path)


class Witness:
    """Tells whether one of its kind was made, or was given its content."""

    made = []

    def __new__(cls):
        cls.made.append("new")
        return super().__new__(cls)

    def __setstate__(self, state):
        self.made.append("state")


class Folder:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"mkdir '{self.path}'",)


def network(torch):
    """Tensors of every kind that a network holds."""
    random = torch.Generator().manual_seed(0)
    base = torch.randn(5, 4, 3, generator=random)
    return collections.OrderedDict({
        "Unet.conv.weight": torch.nn.Parameter(torch.randn(4, 3, 2, 2, generator=random)),
        "Unet.conv.bias": torch.nn.Parameter(torch.randn(4, generator=random)),
        "Unet.turned": base.permute(2, 0, 1), "Unet.part": base[1:3, 1], "Unet.same": base,
        "decom.norm.num_batches_tracked": torch.tensor(7), "decom.empty": torch.zeros(0, 3),
        "decom.half": torch.randn(3, generator=random).half(),
        "decom.double": torch.randn(3, generator=random).double(),
        "decom.mask": torch.tensor([True, False]),
        "decom.bytes": torch.arange(5, dtype=torch.uint8),
    })


def arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def official(torch, net):
    """The layout of a LightenDiffusion checkpoint of the second stage."""
    optimizer = torch.optim.Adam([net["Unet.conv.weight"], net["Unet.conv.bias"]])
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = collections.OrderedDict((f"module.{name}", value) for name, value in net.items())
    state._metadata = {"": {"version": 1}}
    return {
        "step": 2000, "epoch": 3, "state_dict": state, "optimizer": optimizer.state_dict(),
        "ema_helper": {name: 0 * value.detach() for name, value in state.items()},
        "params": argparse.Namespace(config="unsupervised.yml", seed=230, rate=0.5, more=[1, None]),
        "config": argparse.Namespace(data=argparse.Namespace(patch_size=512), model=torch.device(
            "cpu"), size=torch.Size([1, 2]), mean=np.float64(3), sd=np.ones(2), dtype=torch.half),
    }


@pytest.mark.parametrize("form", FORMATS)
def test_the_network_of_a_training_checkpoint(form, torch, tmp_path, monkeypatch):
    net = network(torch)
    content = official(torch, net)
    content["config"].witness = Witness()
    path = save(torch, content, tmp_path / "model_latest.pth.tar", form)
    del Witness.made[:]
    monkeypatch.setitem(sys.modules, "torch", None)  # reading needs none
    same(tensors.read(path), arrays(net))
    assert not Witness.made
    assert tensors.files(path) == [path]


@pytest.mark.parametrize("form", FORMATS)
def test_which_dict_is_taken(form, torch, tmp_path):
    def tensor(value):
        return {"w": torch.tensor([value])}

    def found(content):
        return tensors.read(save(torch, content, tmp_path / "a.pth", form))["w"].tolist()

    assert found(tensor(1.0)) == [1]
    assert found({"model": tensor(1.0)}) == [1]
    assert found({"ema": tensor(3.0), "model": tensor(1.0), "state_dict": tensor(2.0)}) == [2]
    assert found({"state_dict": 4, "model": tensor(1.0)}) == [1]
    assert found({"state_dict": {}, "model": tensor(1.0), "w": torch.zeros(1)}) == [1]
    for content in ({"ema": tensor(1.0)}, {"state_dict": {"w": 3}}, {"state_dict": {3: tensor(1)}},
                    [torch.zeros(1)], {}, torch.zeros(3), argparse.Namespace(w=torch.zeros(1))):
        message = refusal(save(torch, content, tmp_path / "a.pth", form))
        assert "no dict of named tensors" in message and "state_dict or model" in message


@pytest.mark.parametrize("form", FORMATS)
def test_bfloat16_becomes_float32(form, torch, tmp_path):
    value = torch.tensor([[1.0, -2.5], [3e38, 0.1]]).bfloat16()
    found = tensors.read(save(torch, {"w": value.T}, tmp_path / "a.pth", form))
    same(found, {"w": value.T.float().numpy()})


@pytest.mark.parametrize("form", FORMATS)
def test_kinds_of_tensors_that_are_not_supported(form, torch, tmp_path):
    wide = torch.zeros(1).expand(10 ** 6)
    assert "'w' is not inside" in refusal(save(torch, {"w": wide}, tmp_path / "a.pth", form))
    sparse = {"v": torch.zeros(2), "w": torch.eye(3).to_sparse()}
    assert "no dict of named" in refusal(save(torch, sparse, tmp_path / "b.pth", form))


@pytest.mark.parametrize("form", FORMATS)
def test_code_in_a_file_is_not_run(form, torch, tmp_path):
    bad, net = Folder(tmp_path / "made by the file"), network(torch)
    for content in ({"w": bad}, {"state_dict": {**net, "w": bad}}, [bad], bad):
        assert "refused" in refusal(save(torch, content, tmp_path / "a.pth", form))
    # beside a network it is as harmless, and so is the network
    content = official(torch, net) | {"more": bad, 3: {bad: bad}}
    same(tensors.read(save(torch, content, tmp_path / "a.pth", form)), arrays(net))
    assert not (tmp_path / "made by the file").exists()


def archive(folder, pickled):
    with zipfile.ZipFile(folder / "crafted.pth", "w") as file:
        file.writestr("archive/data.pkl", pickled)
    return str(folder / "crafted.pth")


NAMES = [b"cos\nsystem\n", *(b"c%s\n%s\n" % (module.encode(), name.encode())
                             for module, name in tensors._STAND_INS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_cannot_change_the_reader(name, tmp_path):
    """Calls, makes and builds what it names; and writes attributes, all that a pickle can."""
    before = {k: dict(vars(k)) for k in tensors._STAND_INS.values() if isinstance(k, type)}
    state = b"(N}X\x0a\0\0\0find_class" + name + b"st"  # (None, {"find_class": the name})
    for pickled in (name + state + b"b.", name + b")\x81" + state + b"b.", name + b")R.",
                    name + b"(X\x01\0\0\0atR.", name + b"(K\1K\2K\3K\4tR" + state + b"b.",
                    name + b"(K\1e.", name + b"(K\1K\2u.", b"(" + name + b"Q.", name + b"Q."):
        assert "refused" in refusal(archive(tmp_path, b"\x80\2" + pickled))
    assert before == {k: dict(vars(k)) for k in before}


def test_bare_pickles_are_refused_and_not_run(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Folder(tmp_path / "made by the file")))
    assert "refused" in refusal(str(tmp_path / "a.pth"))
    assert not (tmp_path / "made by the file").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_no_damage_of_a_pytorch_file_goes_unnoticed(form, torch, tmp_path):
    """Every third length is refused, and every third byte changed; or it reads as it was."""
    net = {"w": torch.arange(3.0), "v": torch.ones(1, 2)}
    path = pathlib.Path(save(torch, {"state_dict": net, "n": argparse.Namespace(a=1)},
                             tmp_path / "a.pth", form))
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        assert "a.pth is refused" in refusal(str(path))
    for i in range(0, len(content), 3):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1:])
        try:
            found = tensors.read(str(path))
            if form == "archive":  # which has checksums; not of padding, dates and the like
                same(found, arrays(net))
        except InputError as error:
            assert "\n" not in str(error) and "a.pth is refused" in str(error)


def test_other_archives_are_refused(torch, tmp_path):
    path = save(torch, {"w": torch.zeros(3)}, tmp_path / "a.pth")
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}

    def altered(compression=zipfile.ZIP_STORED, **changed):
        with zipfile.ZipFile(tmp_path / "b.pth", "w", compression) as file:
            for name, value in entries.items():
                if (value := changed.get(name.split("/")[1], value)) is not None:
                    file.writestr(name, value)
        return str(tmp_path / "b.pth")

    same(tensors.read(altered()), {"w": np.zeros(3, np.float32)})
    same(tensors.read(altered(byteorder=None)), {"w": np.zeros(3, np.float32)})  # PyTorch 1
    assert "big-endian" in refusal(altered(byteorder=b"big"))
    assert "compressed" in refusal(altered(zipfile.ZIP_DEFLATED))
    assert "data.pkl" in refusal(altered(**{"data.pkl": None}))


def test_the_real_pytorch_files(shared, torch):
    for name in ("retinexnet_torch/Decom/9200.tar", "retinexnet_torch/Relight/9200.tar",
                 "zero_dce/Epoch99.pth", "zero_dce_pp/Epoch99.pth"):
        path = shared / "data/weights" / name
        theirs = torch.load(path, map_location="cpu", weights_only=True)
        same(tensors.read(path), {name.removeprefix("module."): value
                                  for name, value in arrays(theirs).items()})
