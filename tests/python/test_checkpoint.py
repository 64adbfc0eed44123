"""Reading model folders: zero copy where it can be, and a clear error for every broken file."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pagedcore._core import InvalidArgument
from pagedcore.checkpoint import checkpoint_from_tensors, load_checkpoint
from pagedcore.safetensors_file import read_safetensors
from pagedcore.tensors import as_array, convert, from_array

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4}


def tensors_of(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(3, 4, generator=generator).to(dtype),
        "b.weight": torch.randn(5, generator=generator).to(dtype),
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors_of(), tmp_path / "model.safetensors")
    return tmp_path


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def shard(folder, weight_map):
    (folder / "model.safetensors").unlink()
    parts = tensors_of()
    for name in set(weight_map.values()):
        own = {k: v for k, v in parts.items() if weight_map.get(k) == name}
        save_file(own, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_tensors_lie_in_the_mapped_file(folder):
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config == CONFIG
    maps = Path(f"/proc/{os.getpid()}/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith("model.safetensors")]
    for name, expected in tensors_of().items():
        tensor = checkpoint.tensors[name]
        assert np.array_equal(as_array(tensor), expected.numpy())
        assert any(int(a, 16) <= tensor.address < int(b, 16) for a, b in ranges)


def test_tensors_outlive_the_checkpoint_object(folder):
    tensor = load_checkpoint(folder).tensors["a.weight"]
    shutil.rmtree(folder)
    assert np.array_equal(as_array(tensor), tensors_of()["a.weight"].numpy())


def test_shards_are_joined_by_their_index(folder):
    shard(folder, {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"})
    tensors = load_checkpoint(folder).tensors
    assert sorted(tensors) == ["a.weight", "b.weight"]
    assert np.array_equal(as_array(tensors["b.weight"]), tensors_of()["b.weight"].numpy())


def test_a_missing_shard_is_named(folder):
    shard(folder, {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"})
    (folder / "m-2.safetensors").unlink()
    with pytest.raises(InvalidArgument, match=r"m-2\.safetensors does not exist, but .*index"):
        load_checkpoint(folder)


def test_an_index_that_disagrees_with_its_shards_is_refused(folder):
    shard(folder, {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"})
    index = folder / "model.safetensors.index.json"
    right = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": right | {"c.weight": "m-2.safetensors"}}))
    with pytest.raises(InvalidArgument, match=r"places tensor c\.weight in m-2.*in no shard"):
        load_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {"a.weight": 1}}))
    with pytest.raises(InvalidArgument, match="must map names of tensors to names of files"):
        load_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": right}))
    save_file(tensors_of(), folder / "m-2.safetensors")
    with pytest.raises(InvalidArgument, match=r"a\.weight is in both m-1\.safetensors and m-2"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_a_truncated_file_is_refused(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidArgument, match=r"model\.safetensors is truncated: .*bytes|byte"):
        load_checkpoint(folder)


def test_trailing_bytes_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InvalidArgument, match="its tensors end at byte 68 of the data.* has 69"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "its header is not JSON"),
        (b"\xff\xfe", b"", "its header is not JSON"),
        (b"[]", b"", "not a JSON object"),
        (b'{"a": {}, "a": {}}', b"", "holds 'a' twice"),
        ({"a": {"dtype": "F32"}}, b"", "entry of tensor a is malformed"),
        ({"a": entry(0, 4, [-1])}, b"1234", "entry of tensor a is malformed"),
        ({"a": entry(0, 4, [1.5])}, b"1234", "entry of tensor a is malformed"),
        ({"a": entry(0, 4, [True])}, b"1234", "entry of tensor a is malformed"),
        ({"a": entry(0, 4, [2])}, b"1234", r"a \(float32\[2\]\) needs 8 bytes.*\[0, 4\) give 4"),
        ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"1234", "b overlaps a"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"123456789012", "b leaves a gap after"),
        ({"a": entry(4, 8, [1])}, b"12345678", "a leaves a gap after the header"),
        ({"a": entry(0, 4, [1], "F4")}, b"1234", "tensor a has dtype F4, but a model's weights"),
        ({"a": entry(0, 8, [1], "F64")}, b"12345678", "a has dtype float64, but a model's weights"),
    ],
)
def test_a_corrupt_header_is_refused_with_the_reason(tmp_path, header, data, message):
    write_raw(tmp_path / "model.safetensors", header, data)
    with pytest.raises(InvalidArgument, match=rf"model\.safetensors.*{message}"):
        read_safetensors(tmp_path / "model.safetensors")


def test_an_absurd_header_length_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(InvalidArgument, match="not a safetensors file, or is corrupt"):
        read_safetensors(tmp_path / "x.safetensors")


@settings(max_examples=200, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4))
def test_no_corruption_of_a_header_goes_further_than_an_error(tmp_path_factory, flips):
    path = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    save_file(tensors_of(), path)
    data = bytearray(path.read_bytes())
    for position, value in flips:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        tensors = read_safetensors(path)
    except InvalidArgument:
        return
    for tensor in tensors.values():
        as_array(tensor).sum()


def test_tensors_at_odd_addresses_are_copied_to_even_ones(tmp_path):
    value = np.arange(3, dtype=np.float32)
    header = json.dumps({"a": entry(0, 12, [3])}).encode()
    header += b" " * ((3 - len(header)) % 4)
    write_raw(tmp_path / "m.safetensors", header, value.tobytes())
    tensor = read_safetensors(tmp_path / "m.safetensors")["a"]
    assert tensor.address % 4 == 0
    assert np.array_equal(as_array(tensor), value)


def test_masks_and_other_buffers_are_left_out(tmp_path):
    save_file({"mask": torch.ones(2, dtype=torch.bool), "w": torch.ones(2)}, tmp_path / "m")
    assert list(read_safetensors(tmp_path / "m")) == ["w"]


def test_empty_tensors_are_read(tmp_path):
    save_file({"w": torch.ones(0, 3)}, tmp_path / "m")
    assert as_array(read_safetensors(tmp_path / "m")["w"]).shape == (0, 3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
def test_conversion_rounds_as_torch_does(tmp_path, dtype, source):
    special = torch.tensor([0.0, -0.0, 1e-30, 6e-8, 65519.0, -3.0e38, float("inf"), float("nan")])
    if dtype == "float16":
        special = special.clamp(-6e4, 6e4)
    values = torch.cat([torch.randn(2000, generator=torch.Generator().manual_seed(1)), special])
    values = values.to(source)
    tensor = from_array(values, "w")
    result = convert(tensor, dtype, "w")
    expected = values.to(getattr(torch, dtype))
    found = torch.from_numpy(as_array(result).copy()).view(expected.dtype)
    assert torch.equal(found.nan_to_num(7.0, 8.0, 9.0), expected.nan_to_num(7.0, 8.0, 9.0))
    assert (result is tensor) == (source == getattr(torch, dtype))


def test_a_value_beyond_float16_is_refused_by_name():
    tensor = from_array(np.array([1e6], np.float32), "w")
    with pytest.raises(InvalidArgument, match=r"tensor w holds 1e\+06, more than float16 can"):
        convert(tensor, "float16", "w")


def test_pytorch_files_are_read_where_torch_is_installed(folder):
    (folder / "model.safetensors").unlink()
    state = tensors_of(dtype=torch.bfloat16) | {"mask": torch.ones(2, dtype=torch.bool)}
    torch.save(state, folder / "pytorch_model.bin")
    tensors = load_checkpoint(folder).tensors
    assert sorted(tensors) == ["a.weight", "b.weight"]
    assert np.array_equal(as_array(tensors["a.weight"]), state["a.weight"].view(torch.uint16))
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    with pytest.raises(InvalidArgument, match=r"pytorch_model\.bin cannot be read by torch"):
        load_checkpoint(folder)


def test_tensors_in_memory_are_not_copied():
    array, tensor = np.ones((2, 3), np.float16), torch.ones(4, dtype=torch.bfloat16)
    checkpoint = checkpoint_from_tensors(CONFIG, {"a": array, "t": tensor})
    assert checkpoint.tensors["a"].address == array.ctypes.data
    assert checkpoint.tensors["t"].address == tensor.data_ptr()
    assert checkpoint.tensors["t"].dtype == "bfloat16"
    turned = checkpoint_from_tensors(CONFIG, {"a": np.arange(6.0, dtype="f4").reshape(2, 3).T})
    assert np.array_equal(as_array(turned.tensors["a"]), [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(2), "tensor x has dtype float64, but a model's weights must be of float32"),
        ([1.0, 2.0], "tensor x has dtype list, but"),
        (torch.ones(2, device="meta"), "tensor x must be a numpy array or CPU tensor, got meta"),
    ],
)
def test_tensors_of_the_wrong_kind_are_refused(value, message):
    with pytest.raises(InvalidArgument, match=message):
        checkpoint_from_tensors(CONFIG, {"x": value})


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"model folder '.*/nowhere' does not exist"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InvalidArgument, match="got the file"):
        load_checkpoint(__file__)


def test_an_offline_hub_id_says_how_to_pass_a_folder(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidArgument, match=r"(?s)nobody/nothing.*Offline.*LLM\('/path/to/noth"):
        load_checkpoint("nobody/nothing")


def test_a_folder_without_config_or_weights_says_what_it_needs(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        InvalidArgument, match=r"no weights: expected one of .*, found config\.json"
    ):
        load_checkpoint(folder)
    (folder / "config.json").write_text("{nope")
    with pytest.raises(InvalidArgument, match=r"config\.json is not valid JSON"):
        load_checkpoint(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InvalidArgument, match=r"config\.json must hold a JSON object, got list"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InvalidArgument, match=r"config\.json does not exist"):
        load_checkpoint(folder)


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(InvalidArgument, match="dtype must be one of auto, float32, .*got 'int4'"):
        load_checkpoint(folder, dtype="int4")
