"""What holds for every tensor, every position and every damaged byte."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.shipping import SparseTensor, load_sparse, save_sparse
from equipoise.shipping.positions import (
    ENCODINGS,
    decode_positions,
    encode_positions,
    encoded_sizes,
)

few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)


@st.composite
def sets_of_positions(draw):
    """A number of entries and some of them, in runs and with gaps around the escapes."""
    gap = st.one_of(
        st.integers(0, 3),
        st.sampled_from([254, 255, 256, 509, 510, 511, 65_534, 65_535, 65_536, 131_070]),
        st.integers(0, 140_000),
    )
    gaps = draw(st.lists(gap, min_size=1, max_size=12))
    ends = torch.tensor(gaps).cumsum(0) + torch.arange(len(gaps))
    return ends[:-1], int(ends[-1])


@few
@given(given=sets_of_positions(), encoding=st.sampled_from(ENCODINGS))
def test_positions_come_back(given, encoding):
    positions, num_entries = given
    packed = encode_positions(positions, num_entries, encoding)
    assert packed.nbytes == encoded_sizes(positions, num_entries)[encoding]
    assert torch.equal(decode_positions(packed, num_entries, len(positions), encoding), positions)


@settings(max_examples=300, deadline=None)
@given(
    codes=st.lists(st.one_of(st.integers(0, 255), st.just(255), st.just(0)), max_size=6),
    num_entries=st.integers(0, 600),
    num_active=st.integers(0, 5),
    encoding=st.sampled_from(["bitmask", "delta8"]),
)
def test_bytes_are_refused_or_the_only_ones_for_their_positions(
    codes, num_entries, num_active, encoding
):
    packed = torch.tensor(codes, dtype=torch.uint8)
    if encoding == "bitmask":
        num_entries = min(num_entries, 8 * len(codes))
    try:
        positions = decode_positions(packed, num_entries, num_active, encoding)
    except ValueError:
        return
    assert len(positions) == num_active
    assert positions.dtype == torch.int64
    SparseTensor((num_entries,), positions, torch.ones(num_active))  # ascending and in range
    assert torch.equal(encode_positions(positions, num_entries, encoding), packed)


@st.composite
def states(draw):
    """Tensors of a few types, shapes and densities, with masks for some."""
    state, masks = {}, {}
    for number in range(draw(st.integers(0, 3))):
        shape = draw(st.lists(st.integers(0, 40), max_size=3))
        density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.98, 1.0]))
        generator = torch.Generator().manual_seed(draw(seeds))
        mask = torch.rand(shape, generator=generator) < density
        values = torch.randn(shape, generator=generator).mul(50).to(draw(st.sampled_from(DTYPES)))
        name = draw(st.sampled_from(["weight", "a.weight", "\u00e9", "", "values", "x.bias"]))
        state[f"{name}{number}"] = values.masked_fill(~mask, 0)
        if draw(st.booleans()):
            masks[f"{name}{number}"] = mask
    return state, draw(st.sampled_from([masks, None]))


@few
@given(drawn=states())
def test_states_come_back(drawn):
    state, masks = drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        summary = save_sparse(path, state, masks=masks)
        assert summary.bytes == path.stat().st_size
        loaded = load_sparse(path)
    dense = loaded.dense()
    assert list(dense) == list(state)
    for name, value in state.items():
        assert dense[name].dtype == value.dtype
        assert torch.equal(dense[name], value)
    if masks is not None:
        assert loaded.masks().keys() == masks.keys()
        assert all(torch.equal(mask, masks[name]) for name, mask in loaded.masks().items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file and its bytes; its header ends in space."""
    path = tmp_path_factory.mktemp("damage") / "file.safetensors"
    for length in range(8):
        state = {
            "few": torch.eye(40),
            "tiny": torch.zeros(300, 300).index_fill_(1, torch.tensor([7]), 1.0)[:, :],
            "bias": torch.full((5,), 32, dtype=torch.uint8),
        }
        state["tiny"][10:] = 0
        masks = {"few": torch.rand(40, 40) < 0.4, "tiny": state["tiny"] != 0}
        masks["few"] |= state["few"] != 0
        save_sparse(path, state, masks=masks, metadata={"x": "y" * length})
        content = path.read_bytes()
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        if header.endswith(b"   "):
            return path, content
    raise AssertionError("no length of the metadata leaves room to pad")


def refused(path):
    """Whether the file is refused, and that in one sentence."""
    try:
        load_sparse(path)
    except ValueError as error:
        text = str(error)
        return str(path) in text and "\n" not in text and text.endswith(".")
    return False


def test_every_single_byte_counts(whole):
    path, content = whole
    generator = torch.Generator().manual_seed(0)
    for place, byte in enumerate(content):
        number = int(torch.randint(1, 256, (), generator=generator))
        others = {byte ^ number, byte ^ (1 << number % 8)}
        # Space is where a change is seen last, so there all of JSON's other space is tried.
        others |= {9, 10, 13} if byte == 32 else set()
        for other in others - {byte}:
            path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            assert refused(path), f"byte {place} changed from {byte} to {other} was not seen"
    path.write_bytes(content)
    assert not refused(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_other_damage_is_refused(data, whole):
    path, content = whole
    places = st.integers(0, len(content) - 1)
    start, end = sorted([data.draw(places), data.draw(places)])
    damage = data.draw(
        st.sampled_from(
            [
                content[:end],
                content[:start] + content[end:],
                content[:start] + b"\0" * (end - start) + content[end:],
                content[:end] + content[start:],
                content + content[start:end],
            ]
        )
    )
    path.write_bytes(damage)
    assert damage == content or refused(path)
