import dataclasses
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.wire import WireError, decode_update, encode_update, positions, read_header
from cdl_jax.wire.keys import SigningKey
from experiments import fuzz
from tests.wire.updates import MIXED, assert_same, make_update

LINEAGE = bytes(range(16))


def resealed(blob):
    """The same bytes with a checksum that holds."""
    return blob[:-16] + xxhash.xxh3_128_digest(blob[:-16])


def accepted(blob):
    """Whether a blob decodes; if so it must be the one form of what it says."""
    try:
        update = decode_update(blob)
    except WireError:
        return False
    assert encode_update(update, lineage=read_header(blob).lineage) == blob
    return True


def test_header_lies_where_the_docstring_says():
    blob = encode_update(make_update(MIXED, base=258), lineage=LINEAGE)
    assert blob[:8] == b"\x89CDLJX\r\n"
    assert struct.unpack_from("<HH16s16sII16sI", blob, 8) == (
        2, 0, b"f" * 16, LINEAGE, 258, 259,
        np.arange(4, dtype="<u4").tobytes(), len(blob) - 72 - 16,
    )  # fmt: skip
    assert blob[-16:] == xxhash.xxh3_128_digest(blob[:-16])


def test_a_body_written_by_hand():
    update = make_update([((2,), 10, 0, "float32"), ((5,), 10, 2, "float32")])
    update.indices[1][:] = [3, 8]
    blob = encode_update(update)
    # Float32; 1 stretch: 5 leaves skipped, 1 taken; 2 entries less 1, in fixed width 1; gaps 3, 4
    # in fixed width 3, from the lowest bit up; raw values.
    expected = bytes([0, 1, 5, 1, 32 + 1, 1, 32 + 3, 0b100_011, 0])
    assert blob[72:-16] == expected + update.values[1].tobytes()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_updates_come_back(data):
    sections, leaf = [], 0
    for _ in range(data.draw(st.integers(0, 6))):
        leaf += data.draw(st.integers(0, 3))
        n = data.draw(st.integers(1, 400))
        k = data.draw(st.one_of(st.integers(1, n), st.just(n)))
        dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16", "bool", "int64"]))
        leaves = (leaf,) if data.draw(st.booleans()) else (leaf, leaf + 2)
        sections.append((leaves, n, k, dtype))
        leaf = leaves[-1] + 1
    update = make_update(sections, seed=data.draw(st.integers(0, 99)))
    blob = encode_update(update, lineage=LINEAGE)
    assert_same(decode_update(blob), update)
    assert encode_update(decode_update(blob), lineage=LINEAGE) == blob


def test_the_rule_for_dense_sections_costs_little():
    rng = np.random.default_rng(0)
    over = []
    for _ in range(1500):
        k = int(rng.integers(32, 200))
        at = np.sort(rng.choice(int(k / rng.uniform(0.05, 1)), k, replace=False)).astype(np.int32)
        forms = [len(positions.encode(at, np.array([k]), dense=dense)) for dense in (False, True)]
        over.append(forms[positions.is_dense(at)] - min(forms))
    assert np.mean(np.array(over) > 0) < 0.05
    assert max(over) <= 4


def test_padding_and_empty_sections_stay_off_the_wire():
    update = make_update([((0,), 100, 5, "float32"), ((1,), 100, 3, "float32")])
    padded = make_update([((0,), 100, 5, "float32"), ((1,), 100, 3, "float32")])
    padded.indices[0][3:] = [100, 101]
    padded.counts[:] = [3, 0]
    decoded = decode_update(encode_update(padded))
    assert decoded.sections == ((0,),)
    assert decoded.indices[0].tolist() == update.indices[0][:3].tolist()


def test_a_density_of_one_in_a_thousand_costs_little_more_than_the_entropy():
    update = make_update([((0,), 1_000_000, 1000, "float32")])
    size = len(encode_update(update)) - 72 - 16 - 4000
    floor = 1000 * (np.log2(1000) + 1.443) / 8
    assert size < 1.03 * floor


LENET5 = (6, 150, 16, 2400, 120, 48_000, 84, 10_080, 10, 840)
DEEP = (64, 64, 36_864) * 40 + (512, 512, 2_359_296) * 3


@pytest.mark.parametrize("density", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("sizes", [LENET5, DEEP])
def test_an_update_costs_its_floor_its_values_160_bytes_and_one_a_tensor(sizes, density):
    sections = [((i,), n, max(1, int(density * n)), "float32") for i, n in enumerate(sizes)]
    floor = sum(math.log2(math.comb(n, k)) for _, n, k, _ in sections) / 8
    values = 4 * sum(k for _, _, k, _ in sections)
    key, rng = SigningKey.generate(), np.random.default_rng(0)
    for seed in range(10):
        weights = [(0.02 * rng.standard_normal(k)).astype(np.float32) for _, _, k, _ in sections]
        update = make_update(sections, seed=seed)
        blob = encode_update(dataclasses.replace(update, values=tuple(weights)), key=key)
        assert len(blob) <= 1.01 * (floor + values) + 160 + len(sizes)


def test_every_bit_flip_and_every_cut_is_refused():
    blob = encode_update(make_update(MIXED[:5]), lineage=LINEAGE)
    for i in range(8 * len(blob)):
        mutant = bytearray(blob)
        mutant[i // 8] ^= 1 << (i % 8)
        with pytest.raises(WireError):
            decode_update(bytes(mutant))
    for size in range(len(blob)):
        with pytest.raises(WireError):
            decode_update(blob[:size])
    with pytest.raises(WireError):
        decode_update(blob + b"\0")


@pytest.mark.parametrize("seed", range(2))
def test_mutants_with_a_good_checksum_are_refused_or_canonical(seed):
    rng = np.random.default_rng(seed)
    blob = encode_update(make_update(MIXED, seed=seed))
    kinds = {True: 0, False: 0}
    for _ in range(600):
        mutant = bytearray(blob)
        for _ in range(rng.integers(1, 4)):
            mutant[rng.integers(72, len(blob) - 16)] = rng.integers(256)
        kinds[accepted(resealed(bytes(mutant)))] += 1
    assert min(kinds.values()) > 15  # both outcomes are exercised


@pytest.mark.parametrize("place", range(72, 90))
@pytest.mark.parametrize("number", [2**63, 2**31 - 1, 2**17, 255])
def test_extreme_counts_and_lengths_allocate_little(place, number):
    blob = encode_update(make_update(MIXED))
    varint = bytearray()
    while number > 127:
        varint.append(number & 127 | 128)
        number >>= 7
    varint.append(number)
    body = blob[72:place] + bytes(varint) + blob[place + 1 : -16]
    mutant = blob[:68] + struct.pack("<I", len(body)) + body + bytes(16)
    accepted(resealed(mutant))
    assert fuzz.allocation(resealed(mutant)) < 0.5  # of the bound: up to 2^17 leaves are listed


@pytest.mark.parametrize(
    ("patch", "word"),
    [((0, b"PK"), "not the bytes"), ((8, b"\3"), "format version 3"), ((10, b"\2"), "flags 2"),
     ((48, b"\7"), "does not follow"), ((68, b"\0"), "header and body")],
)  # fmt: skip
def test_foreign_headers_are_named(patch, word):
    blob = bytearray(encode_update(make_update(MIXED)))
    blob[patch[0] : patch[0] + len(patch[1])] = patch[1]
    with pytest.raises(WireError, match=word):
        decode_update(resealed(bytes(blob)))


def test_wire_needs_no_jax():
    code = (
        "import sys; sys.modules['jax'] = None; sys.modules['flax'] = None\n"
        "sys.modules['optax'] = None\n"
        "import cdl_jax.wire, cdl_jax.deploy, cdl_jax.cli\n"
        "from cdl_jax.deploy import Replica"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
