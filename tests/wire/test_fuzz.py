"""The short form of `make fuzz`."""

import itertools
import json

import numpy as np
import pytest

from cdl_jax.wire import WireError, codec, decode_update, values
from experiments import fuzz
from experiments import mutants as fed


def test_mutants_are_refused_or_the_one_form_of_what_they_say():
    result = fuzz.mutants(1500, np.random.default_rng(7))
    assert result["raw_accepted"] == 0
    assert result["mended_canonical"] > 100  # both outcomes are exercised
    assert result["mended_refused"] > 500
    assert result["resealed_canonical"] > 100
    for found in result["deeds"].values():
        assert found["mutants"] == found["mended_refused"] + found["mended_canonical"] > 100
        assert found["mutants"] == found["resealed_refused"] + found["resealed_canonical"]


def test_a_mutant_is_never_a_golden_file():
    rng, seeds = np.random.default_rng(0), fuzz.corpus()
    assert not any(fed.mutate(rng, seeds)[0] in seeds for _ in range(2000))


def test_resealed_mutants_reach_the_decoder_with_their_own_header():
    rng, seeds, heads = np.random.default_rng(0), fuzz.corpus(), set()
    for _ in range(2000):
        blob = fuzz.resealed(fed.mutate(rng, seeds)[0])
        if fuzz.accepted(blob):
            heads.add(blob[: fuzz.HEADER])
    assert len(heads - {seed[: fuzz.HEADER] for seed in seeds}) > 10


def test_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "BLOCK", 10)
    monkeypatch.setattr(fed, "bombs", lambda: fuzz.corpus()[:2])
    monkeypatch.setattr(fed, "heavy", list)

    def report(folder, **options):
        results = str(tmp_path / folder)
        fuzz.main(fuzz.Options(mutants=35, guided_seconds=0, results=results, **options))
        found = json.loads((tmp_path / folder / "fuzz.json").read_text())
        return {k: v for k, v in found.items() if k not in ("seconds", "slowest_ms")}

    assert report("pieces", seconds=1e-9)["mutants"] == 10
    assert report("pieces") == report("whole")
    assert report("pieces", seed=1)["mutants"] == 35


def test_what_would_pass_a_careless_decoder_is_found(monkeypatch):
    blob = next(b for b in fuzz.corpus() if b[fuzz.HEADER :][:1] == b"\1")
    assert fuzz.accepted(fuzz.mended(blob))
    monkeypatch.setattr("cdl_jax.wire.codec._encode_groups", lambda groups: b"")
    with pytest.raises(WireError, match="one form"):
        decode_update(fuzz.mended(blob))


def test_a_decoder_that_takes_other_forms_is_found(monkeypatch):
    def careless(body):
        reader, groups = codec._Reader(body), []
        while reader.at < len(body):
            groups.append(codec._read_group(reader, groups[-1].last if groups else -1))
        return groups

    monkeypatch.setattr("cdl_jax.wire.format.decode_body", careless)
    with pytest.raises(AssertionError, match="another form"):
        fuzz.mutants(1500, np.random.default_rng(7))


@pytest.mark.parametrize("name", ["float32", "signed"])
@pytest.mark.parametrize("place", [12, 30, 60])  # fingerprint, lineage, digest
def test_a_header_read_wrong_is_found(monkeypatch, name, place):
    blob = (fed.GOLDEN / f"{name}.update").read_bytes()
    other = fuzz.resealed(blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :])
    assert fuzz.accepted(other)
    found = fuzz.decode_with_header(blob)
    monkeypatch.setattr(fuzz, "decode_with_header", lambda blob: found)
    with pytest.raises(AssertionError, match="another form"):
        fuzz.accepted(other)


def test_heavy_bodies_decode_within_the_bound_in_both_forms():
    for blob in itertools.islice(fed.heavy(), 3):  # the others take longer
        assert fuzz.accepted(blob)
        assert max(fuzz.shares(blob).values()) < 0.9


def test_an_allocation_past_the_bound_is_found(monkeypatch):
    blob = fuzz.corpus()[0]
    decode = values.decode

    def careless(*arguments, **options):
        bytearray(64 << 20)
        return decode(*arguments, **options)

    monkeypatch.setattr(values, "decode", careless)
    with pytest.raises(AssertionError, match="were allocated"):
        fuzz.allocation(blob)
