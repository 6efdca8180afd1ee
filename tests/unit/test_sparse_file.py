"""Small files of sparse networks: what they hold, how large they are, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from equipoise.models import create
from equipoise.shipping import SparseTensor, load_sparse, save_sparse
from equipoise.shipping.container import FORMAT, read_container, write_container
from equipoise.shipping.positions import ENCODINGS, encode_positions, encoded_sizes
from equipoise.topology import Topology

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.uint16, torch.uint32, torch.bool,
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.safetensors"


def raw(tensor: Tensor) -> bytes:
    """The bits of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the last bit, type and shape."""
    return (one.dtype, one.shape, raw(one)) == (other.dtype, other.shape, raw(other))


def some_active(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor:
    """A mask with about so many entries."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def any_bits(dtype: torch.dtype, mask: Tensor, seed: int = 0) -> Tensor:
    """Arbitrary non-zero bits under a mask, so NaNs and infinities too."""
    size = (*mask.shape, torch.empty(0, dtype=dtype).element_size())
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(1, 256, size, dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        drawn.fill_(1)
    return (drawn * mask.unsqueeze(-1)).view(dtype).reshape(mask.shape)


def encodings(path: Path) -> dict[str, str]:
    """How every tensor of a file is stored."""
    layout = read_container(path)[1]["tensors"]
    return {name: said["encoding"] for name, said in layout.items() if "encoding" in said}


def sentence(path: Path) -> str:
    """What is said about a file that is refused."""
    with pytest.raises(ValueError, match=r"\.$") as caught:
        load_sparse(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert ";" in text, "nothing says what to do"
    return text


# Round trips


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_keeps_its_bits(dtype: torch.dtype, path: Path) -> None:
    mask = some_active((64, 100), 0.1)
    state = {"weight": any_bits(dtype, mask), "one": any_bits(dtype, mask[0])}
    for masks in (None, {"weight": mask}):
        save_sparse(path, state, masks=masks)
        loaded = load_sparse(path)
        assert list(loaded.tensors) == ["weight", "one"]
        assert all(same(loaded.dense()[name], state[name]) for name in state)
        assert isinstance(loaded.tensors["one"], Tensor)
        sparse = loaded.tensors["weight"]
        if isinstance(sparse, SparseTensor):
            assert torch.equal(sparse.positions, mask.flatten().nonzero().squeeze(1))
            assert torch.equal(loaded.masks()["weight"], mask)
        else:
            assert dtype.itemsize == 1, "packing gains nothing at one byte an entry only"


def test_special_numbers(path: Path) -> None:
    values = torch.tensor([float("nan"), -0.0, float("inf"), -float("inf"), 1e-45, 0.0])
    values = torch.cat([values, torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)])
    tensor = torch.zeros(50, 50)
    tensor[7, 3:10] = values
    save_sparse(path, {"x": tensor})
    loaded = load_sparse(path)
    assert same(loaded.dense()["x"], tensor)
    sparse = loaded.tensors["x"]
    assert isinstance(sparse, SparseTensor)
    assert sparse.positions.tolist() == [353, 354, 355, 356, 357, 359], "-0.0 is there, 0.0 not"


def test_active_zeros_survive_under_a_mask(path: Path) -> None:
    mask = some_active((40, 50), 0.2)
    weight = torch.zeros(40, 50)
    summary = save_sparse(path, {"w": weight, "v": torch.zeros(9, 9)}, masks={"w": mask})
    assert (summary.num_sparse, summary.num_active) == (1, int(mask.sum()))
    loaded = load_sparse(path)
    assert torch.equal(loaded.masks()["w"], mask)
    assert loaded.masks().keys() == {"w"}, "a tensor without a mask became sparse"
    assert same(loaded.dense()["w"], weight)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.99, 0.5, 0.1, 0.01, 0.0005, 0.0])
def test_a_mask_is_kept_at_every_density(density: float, zeros: bool, path: Path) -> None:
    mask = some_active((100, 200), density)
    weight = torch.where(mask, torch.tensor(0.0 if zeros else 2.0), torch.tensor(0.0))
    save_sparse(path, {"w": weight}, masks={"w": mask})
    loaded = load_sparse(path)
    assert torch.equal(loaded.masks()["w"], mask)
    assert same(loaded.dense()["w"], weight)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1), (7,), (2, 3, 4, 5, 6)])
def test_every_shape(shape: tuple[int, ...], path: Path) -> None:
    mask = some_active(shape, 0.5)
    state = {"w": torch.where(mask, 1.5, 0.0), "plain": torch.ones(shape)}
    for masks in (None, {"w": mask}):
        save_sparse(path, state, masks=masks)
        dense = load_sparse(path).dense()
        assert all(same(dense[name], state[name]) for name in state)
    assert torch.equal(load_sparse(path).masks()["w"], mask)


def test_sparse_tensors_are_taken_over(path: Path) -> None:
    tensor = SparseTensor((300, 300), torch.tensor([0, 5, 89_999]), torch.tensor([1.0, 0.0, -0.0]))
    full = SparseTensor((2,), torch.tensor([0, 1]), torch.tensor([0.0, 3.0]))
    summary = save_sparse(path, {"a": tensor, "full": full, "b": torch.ones(3)}, masks={})
    assert summary.num_active == 5
    assert summary.dense_bytes == 4 * (90_000 + 2 + 3)
    loaded = load_sparse(path)
    for name, given in (("a", tensor), ("full", full)):
        got = loaded.tensors[name]
        assert isinstance(got, SparseTensor)
        assert got.shape == given.shape
        assert torch.equal(got.positions, given.positions)
        assert same(got.values, given.values)


def test_without_masks_only_what_gains_by_it_becomes_sparse(path: Path) -> None:
    gaps = torch.zeros(500)
    state = {"dense": torch.ones(50, 50), "few": torch.eye(5), "bias": gaps, "w": torch.eye(90)}
    save_sparse(path, state)
    assert load_sparse(path).masks().keys() == {"w"}
    assert encodings(path) == {"dense": "plain", "few": "plain", "bias": "plain", "w": "delta8"}


def test_metadata_come_back(path: Path) -> None:
    metadata = {"a": [1, 2.5, None, True], "b": {'\u00e9 " \\ \n': "x"}, "nan": float("inf")}
    save_sparse(path, {"x": torch.ones(2)}, metadata=metadata)
    assert load_sparse(path).metadata == metadata
    with pytest.raises(ValueError, match=r"metadata are not JSON values.*; pass"):
        save_sparse(path, {"x": torch.ones(2)}, metadata={"a": torch.ones(1)})
    assert load_sparse(path).metadata == metadata, "the old file was touched"


def test_nothing_at_all(path: Path) -> None:
    assert save_sparse(path, {}).share == float("inf")
    assert (load_sparse(path).dense(), load_sparse(path).metadata) == ({}, {})


def test_other_layouts_and_parameters(path: Path) -> None:
    conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = {
        "parameter": conv.weight,
        "transposed": torch.eye(60).t(),
        "expanded": torch.ones(1).expand(4, 4),
        "conjugate": torch.full((3,), 1 + 2j).conj(),
    }
    save_sparse(path, state)
    dense = load_sparse(path).dense()
    assert all(torch.equal(dense[name], state[name]) for name in state)
    assert dense["parameter"].is_contiguous()
    masks = {"parameter": torch.ones(8, 8, 3, 3, dtype=torch.bool)}
    save_sparse(path, {"parameter": conv.weight}, masks=masks)
    assert torch.equal(load_sparse(path).dense()["parameter"], conv.weight)
    assert conv.weight.requires_grad


def test_a_model_goes_through_and_is_not_changed(path: Path) -> None:
    model = create("small_cnn", num_classes=10, in_channels=1, image_size=8)
    topology = Topology(model, sparsity=0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_sparse(path, model.state_dict(), masks=topology.masks)
    assert all(same(model.state_dict()[name], before[name]) for name in before)
    other = create("small_cnn", num_classes=10, in_channels=1, image_size=8)
    other.load_state_dict(load_sparse(path).dense())
    assert all(same(other.state_dict()[name], before[name]) for name in before)
    masks = load_sparse(path).masks()
    assert masks.keys() == topology.masks.keys()
    assert all(torch.equal(masks[name], topology.masks[name]) for name in masks)


# Ties


def test_tied_tensors_are_stored_once_and_come_back_tied(path: Path) -> None:
    first, second = (nn.Linear(40, 40, bias=False) for _ in range(2))
    model = nn.Sequential(first, second)
    mask = some_active((40, 40), 0.1)
    with torch.no_grad():
        first.weight.masked_fill_(~mask, 0)
    single = save_sparse(path, {"0.weight": first.weight}, masks={"0.weight": mask})
    second.weight = first.weight
    for given in ({"1.weight": mask}, {"0.weight": mask, "1.weight": mask.clone()}, None):
        summary = save_sparse(path, model.state_dict(), masks=given)
        assert summary.bytes < single.bytes + 100
        assert (summary.dense_bytes, summary.num_sparse) == (4 * 1600, 1)
        loaded = load_sparse(path)
        assert loaded.tensors["0.weight"] is loaded.tensors["1.weight"]
        dense = loaded.dense()
        assert dense["0.weight"] is dense["1.weight"]
        assert torch.equal(dense["1.weight"], first.weight)
        assert all(torch.equal(m, mask) for m in loaded.masks().values())
    with pytest.raises(ValueError, match=r"'1\.weight' is tied to a tensor with another mask"):
        save_sparse(path, model.state_dict(), masks={"0.weight": mask, "1.weight": ~mask})


def test_tied_sparse_tensors(path: Path) -> None:
    tensor = SparseTensor((50,), torch.tensor([3]), torch.tensor([1.0]))
    again = SparseTensor((50,), tensor.positions, tensor.values)
    other = SparseTensor((50,), tensor.positions, tensor.values.clone())
    save_sparse(path, {"a": tensor, "b": again, "c": other, "d": tensor})
    tensors = load_sparse(path).tensors
    assert tensors["a"] is tensors["b"] is tensors["d"]
    assert tensors["c"] is not tensors["a"]


def test_views_of_one_memory_are_not_ties(path: Path) -> None:
    memory = torch.arange(6.0)
    state = {
        "row": memory[:3], "rest": memory[3:], "other": memory[:4],
        "two": memory.view(2, 3), "turned": memory.view(3, 2), "bits": memory.view(torch.int32),
    }  # fmt: skip
    save_sparse(path, state)
    dense = load_sparse(path).dense()
    assert all(same(dense[name], state[name]) for name in state)
    assert len({id(value) for value in dense.values()}) == len(state)


# The file


def test_any_reader_of_safetensors_opens_it(path: Path) -> None:
    mask = some_active((64, 64), 0.1)
    state = {"w": torch.where(mask, 2.0, 0.0), "bias": torch.arange(64.0)}
    save_sparse(path, state, masks={"w": mask})
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == FORMAT
        assert file.metadata()["version"] == "1"
        assert sorted(file.keys()) == ["bias", "w..positions", "w..values"]
        assert torch.equal(file.get_tensor("bias"), state["bias"])
        assert torch.equal(file.get_tensor("w..values"), state["w"][mask])


def test_the_same_state_makes_the_same_file(tmp_path: Path) -> None:
    state = {"w": torch.eye(90), "b": torch.ones(9)}
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}"
        summary = save_sparse(path, state, metadata={"a": 1})
        contents.add(path.read_bytes())
        assert summary.bytes == path.stat().st_size
    assert len(contents) == 1


@pytest.mark.parametrize("where", ["sync", "rename"])
def test_a_failure_while_writing_keeps_the_old_file(
    where: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sparse(path, {"x": torch.ones(2)})
    before = path.read_bytes()

    def fails(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    if where == "sync":
        monkeypatch.setattr(os, "fsync", fails)
    else:
        monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space left"):
        save_sparse(path, {"x": torch.zeros(2)})
    monkeypatch.undo()
    assert path.read_bytes() == before


@pytest.mark.parametrize(("sparsity", "largest"), [(0.9, 0.14), (0.99, 0.02)])
@pytest.mark.parametrize("with_masks", [True, False])
def test_the_sizes_that_are_promised(
    sparsity: float, largest: float, with_masks: bool, path: Path
) -> None:
    model = create("vgg16", num_classes=10)
    topology = Topology(model, sparsity=sparsity, distribution="erk")
    state = model.state_dict()
    summary = save_sparse(path, state, masks=topology.masks if with_masks else None)
    dense = sum(value.numel() * value.element_size() for value in state.values())
    assert summary.dense_bytes == dense == 61_281_168
    assert summary.share == path.stat().st_size / dense
    assert 0.7 * largest < summary.share <= largest
    loaded = load_sparse(path).dense()
    assert all(same(loaded[name], state[name]) for name in state)


# Encodings


@pytest.mark.parametrize(
    ("density", "encoding"),
    [(1.0, "all"), (0.99, "nonzero"), (0.5, "bitmask"), (0.05, "delta8"), (0.0002, "delta16")],
)
def test_the_smallest_encoding_is_chosen(density: float, encoding: str, path: Path) -> None:
    mask = some_active((500, 600), density)
    save_sparse(path, {"w": torch.where(mask, 1.0, 0.0)}, masks={"w": mask})
    assert encodings(path) == {"w": encoding}


def test_packed_positions_are_what_the_format_says() -> None:
    positions = torch.tensor([0, 9, 10 + 255, 10 + 255 + 1 + 511])
    for encoding, codes in {
        "bitmask": [1, 2] + [0] * 31 + [2] + [0] * 63 + [2],
        "delta8": [0, 8, 255, 0, 255, 255, 1, 6],
        "delta16": [0, 8, 255, 511, 6],
    }.items():
        packed = encode_positions(positions, 784, encoding)  # type: ignore[arg-type]
        assert packed.to(torch.int64).tolist() == codes, encoding
        assert packed.nbytes == encoded_sizes(positions, 784)[encoding]  # type: ignore[index]


# Mistakes of a caller


@pytest.mark.parametrize(
    ("state", "masks", "words"),
    [
        ({"w": torch.ones(3)}, {"w": torch.tensor([True, False, True])}, "1 values outside"),
        ({"w": torch.full((3,), torch.nan)}, {"w": torch.zeros(3, dtype=torch.bool)}, "3 values"),
        ({"w": torch.ones(3)}, {"w": torch.ones(3)}, "the mask is torch.float32"),
        ({"w": torch.ones(3)}, {"w": torch.ones(4, dtype=torch.bool)}, r"shape \(4,\)"),
        ({"w": torch.ones(3)}, {"w": [True] * 3}, "mask of 'w' is of type list"),
        ({"w": torch.ones(3)}, {"v": torch.ones(3, dtype=torch.bool)}, "'v' .* not in the state"),
        ({"w": "text"}, None, "'w' is of type str"),
        ({"w": torch.ones(3, device="meta")}, None, "no dense entries in memory"),
        ({"w": torch.eye(3).to_sparse()}, None, "no dense entries in memory"),
        ({"w": torch.ones(3, dtype=torch.complex128)}, None, "complex128 cannot be kept"),
        ({"w": torch.ones(3, 3, dtype=torch.complex128)}, None, "complex128 cannot be kept"),
        ({"__metadata__": torch.ones(3)}, None, "rename it"),
        ({"w..values": torch.ones(3), "w": torch.eye(90)}, None, r"'w\.\.values' is the name of"),
        ({"w": torch.eye(90), "w..positions": torch.ones(3)}, None, "is the name of two tensors"),
    ],
)
def test_mistakes_are_one_sentence(state: Any, masks: Any, words: str, path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        save_sparse(path, state, masks=masks)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not path.exists()


def test_a_sparse_tensor_takes_no_mask(path: Path) -> None:
    state = {"w": SparseTensor((3,), torch.tensor([1]), torch.ones(1))}
    with pytest.raises(ValueError, match="'w' has a mask but is sparse already; leave"):
        save_sparse(path, state, masks={"w": torch.ones(3, dtype=torch.bool)})


def test_negative_zeros_outside_a_mask_are_zeros(path: Path) -> None:
    mask = torch.tensor([True, False])
    save_sparse(path, {"w": torch.tensor([-0.0, -0.0])}, masks={"w": mask})
    assert same(load_sparse(path).dense()["w"], torch.tensor([-0.0, 0.0]))


@pytest.mark.parametrize(
    ("positions", "values", "words"),
    [
        ([0, 1], [1.0], "2 positions for 1 values"),
        ([1, 0], [1.0, 1.0], "do not ascend"),
        ([1, 1], [1.0, 1.0], "do not ascend"),
        ([-1], [1.0], "do not ascend"),
        ([6], [1.0], r"do not ascend within \[0, 6\)"),
        ([0.0], [1.0], "positions are torch.float32"),
        ([[0]], [1.0], r"of shape \(1, 1\)"),
        ([0], [[1.0]], "one dimension each"),
    ],
)
def test_sparse_tensors_that_do_not_fit_together(positions: Any, values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SparseTensor((2, 3), torch.tensor(positions), torch.tensor(values))


# Damage


@pytest.fixture
def whole(path: Path) -> bytes:
    """A file with every encoding."""
    state: dict[str, Tensor | SparseTensor] = {"plain": torch.arange(3)}
    masks = {}
    for number, density in enumerate((1.0, 0.99, 0.5, 0.05, 0.0002)):
        mask = some_active((200, 400), density, seed=number)
        state[f"w{number}"] = torch.where(mask, 1.0, 0.0).to(torch.float16)
        masks[f"w{number}"] = mask
    state["tied"] = state["w4"]
    save_sparse(path, state, masks=masks, metadata={"run": 1})
    kinds = {*ENCODINGS, "all", "nonzero", "plain"}
    assert set(encodings(path).values()) == kinds
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.1, 0.5, 0.9, 0.99999])
def test_a_truncated_file(share: float, path: Path, whole: bytes) -> None:
    path.write_bytes(whole[: int(share * len(whole))])
    assert "is damaged or not a safetensors file" in sentence(path)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\0" * 500, b"{}", b"PK\x03\x04", bytes(range(256)) * 20]
)
def test_garbage(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert "is damaged or not a safetensors file" in sentence(path)


def test_a_header_of_endless_depth(path: Path) -> None:
    header = b"[" * 200_000 + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    sentence(path)


def test_something_after_the_end(path: Path, whole: bytes) -> None:
    path.write_bytes(whole + b"\0")
    sentence(path)


def test_files_of_another_kind(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(2)}, path)
    assert "of another kind (format None" in sentence(path)
    safetensors.torch.save_file({"x": torch.ones(2)}, path, {"format": "pt"})
    assert "of another kind (format 'pt'" in sentence(path)
    safetensors.torch.save_file({"x": torch.ones(2)}, path, {"format": FORMAT, "version": "2"})
    assert "has version '2'" in sentence(path)


def test_no_file_and_a_folder(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*; check the path\.$"):
        load_sparse(path)
    path.mkdir()
    assert "is a folder" in sentence(path)


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_nothing_is_ever_executed(way: str, path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    content = {"w": Malicious(trace)}
    if way == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    sentence(path)
    assert not trace.exists()


def changed(path: Path, entries: dict[str, Tensor], contents: dict[str, Any]) -> str:
    """What is said about parts with right checksums that do not fit together."""
    write_container(path, entries, contents)
    text = sentence(path)
    assert "is damaged (" in text
    return text


HUGE: list[list[Any]] = [
    [2**40],
    [2**31, 2**31],
    [2**62, 4],
    [2**62, 2**62, 0],
    [200, 399],
    [200, 401],
    [-200, -400],
    [80_000.0],
    ["80000"],
    [True, 80_000],
]


@pytest.mark.parametrize("shape", HUGE, ids=str)
@pytest.mark.parametrize("name", ["w2", "w3", "w4"])
def test_a_shape_that_the_positions_do_not_bear_out(
    name: str, shape: list[Any], path: Path, whole: bytes
) -> None:
    entries, contents = read_container(path)
    contents["tensors"][name]["shape"] = shape
    assert repr(name) in changed(path, entries, contents)


@pytest.mark.parametrize("name", ["w2", "w3", "w4"])
def test_values_that_do_not_match_the_positions(name: str, path: Path, whole: bytes) -> None:
    entries, contents = read_container(path)
    values = entries[f"{name}..values"]
    for wrong in (values[:-1], torch.cat([values, values[:1]]), values[:0]):
        given = entries | {f"{name}..values": wrong}
        assert f"positions for {len(wrong)} values" in changed(path, given, dict(contents))
    given = entries | {f"{name}..values": values.reshape(1, -1)}
    assert "one dimension each" in changed(path, given, dict(contents))


@pytest.mark.parametrize("name", ["w2", "w3", "w4"])
def test_positions_that_are_none(name: str, path: Path, whole: bytes) -> None:
    entries, contents = read_container(path)
    positions = entries[f"{name}..positions"]
    wide = positions.to(torch.int64)
    escape = torch.full((1,), 2 ** (8 * positions.element_size()) - 1)
    for wrong in (
        positions[:-1],
        positions[:0],
        positions.reshape(1, -1),
        positions.to(torch.int32),
        torch.cat([wide, wide[:1]]).to(positions.dtype),
        torch.cat([wide, escape]).to(positions.dtype),
        torch.cat([wide[:-1], wide[-1:] ^ 1]).to(positions.dtype),
    ):
        text = changed(path, entries | {f"{name}..positions": wrong}, dict(contents))
        assert f"{name!r} has " in text


def test_a_bitmask_that_goes_on_after_its_end(path: Path) -> None:
    mask = torch.tensor([True] * 300 + [False] * 1000 + [True] * 301).flip(0)
    weight = torch.where(mask, 0.0, 0.0)
    save_sparse(path, {"w": weight}, masks={"w": mask})
    assert encodings(path) == {"w": "bitmask"}
    entries, contents = read_container(path)
    entries["w..positions"][-1] |= 128
    assert "goes on after its last entry" in changed(path, entries, contents)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("tensors"),
        lambda c: c.pop("metadata"),
        lambda c: c.update(metadata=7),
        lambda c: c.update(tensors=[]),
        lambda c: c["tensors"].pop("plain"),
        lambda c: c["tensors"].pop("w2"),
        lambda c: c["tensors"].update(w2=7),
        lambda c: c["tensors"].update(more={"encoding": "plain"}),
        lambda c: c["tensors"].update(more={"same_as": "nothing"}),
        lambda c: c["tensors"].update(more={"same_as": []}),
        lambda c: c["tensors"]["w2"].update(encoding="delta8"),
        lambda c: c["tensors"]["w2"].update(encoding="all"),
        lambda c: c["tensors"]["w2"].update(encoding="zip"),
        lambda c: c["tensors"]["w2"].update(encoding=[]),
        lambda c: c["tensors"]["w2"].update(shape=7),
        lambda c: c["tensors"]["w2"].pop("shape"),
        lambda c: c["tensors"]["w2"].pop("encoding"),
    ],
)
def test_contents_that_contradict_each_other(change: Any, path: Path, whole: bytes) -> None:
    entries, contents = read_container(path)
    change(contents)
    changed(path, entries, contents)


@pytest.mark.parametrize("text", ["[]", "7", "{", "[" * 100_000, "{}"])
def test_contents_that_are_none(text: str, path: Path) -> None:
    import zlib

    metadata = {
        "format": FORMAT,
        "version": "1",
        "contents": text,
        "checksum": f"{zlib.crc32(text.encode()):08x}",
    }
    safetensors.torch.save_file({"x": torch.ones(2)}, path, metadata)
    assert "is damaged (" in sentence(path)


def test_a_wrong_checksum_is_named(path: Path, whole: bytes) -> None:
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for name in ("plain", "w1", "w2..values", "w3..positions"):
        start = 8 + length + header[name]["data_offsets"][0]
        content = bytearray(whole)
        content[start] ^= 4
        path.write_bytes(content)
        assert f"the checksum of {name!r} is wrong" in sentence(path)


def test_a_header_that_tells_another_type_or_shape(path: Path, whole: bytes) -> None:
    for told, other in ((b'"F16"', b'"I16"'), (b"[200,400]", b"[400,200]")):
        assert told in whole
        path.write_bytes(whole.replace(told, other, 1))
        assert "is damaged (" in sentence(path) or "is damaged or" in sentence(path)
