"""The short form of `make fuzz`."""

import json

import numpy as np
import pytest

from cdl_jax.wire import WireError, decode_update, values
from experiments import fuzz


def test_mutants_are_refused_or_the_one_form_of_what_they_say():
    result = fuzz.mutants(1500, np.random.default_rng(7))
    assert result["raw_accepted"] == 0
    assert result["mended_canonical"] > 100  # both outcomes are exercised
    assert result["mended_refused"] > 500
    for found in result["deeds"].values():
        assert found["mutants"] == found["mended_refused"] + found["mended_canonical"] > 100


def test_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "BLOCK", 10)
    monkeypatch.setattr(fuzz, "bombs", list)

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


def test_an_allocation_past_the_bound_is_found(monkeypatch):
    blob = fuzz.corpus()[0]
    decode = values.decode

    def careless(*arguments, **options):
        bytearray(64 << 20)
        return decode(*arguments, **options)

    monkeypatch.setattr(values, "decode", careless)
    with pytest.raises(AssertionError, match="were allocated"):
        fuzz.allocation(blob)
