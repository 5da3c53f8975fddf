"""Mutants of updates against the decoder: damage must be refused, never believed or crash.

    python -m experiments.fuzz                    a million mutants, and ten minutes guided
    python -m experiments.fuzz --mutants 20000 --guided-seconds 0 --results /tmp/fuzz

Every mutant of the golden files (see `mutants.DEEDS`; one to three things are done to each, and
none is left as it was) is decoded in three forms: as it is; resealed, that is with its checksum
mended alone, so that what was done to the header stands; and mended, with a header that begins
well and a length that holds too, so that it reaches the decoder of the body. Expected: as it is
none is accepted; of the other two each gives a WireError or an update that re-encodes to exactly
its bytes, header and all but the signature. Every 100th is decoded by the NumPy form too, which
must take the same ones, and under tracemalloc in both; so are bombs (counts as large as the body
lets pass) and heavy bodies (canonical ones that say the most a byte): allocation must stay below
the bound in cdl_jax/wire/FORMAT.md. tracemalloc sees what Python and NumPy allocate, not the C++
vectors of the native form; these hold at most 9 bytes a number, and no more than 8 numbers a byte
left are taken on. `slowest_ms` is CPU time. The guided run feeds bodies to the decoder by
coverage of cdl_jax.wire (atheris and libFuzzer, `pip install 'cdl_jax[fuzz]'`).

Writes fuzz.json after every 10,000 mutants; the same command goes on from there, as long as the
decoder's sources are those it was begun with. A mutant counts under each deed done to it.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import tyro
import xxhash

from cdl_jax.wire import WireError, decode_update, encode_update, numbers
from cdl_jax.wire.format import decode_with_header
from experiments import mutants as fed
from experiments.mutants import CHECKSUM, DEEDS, HEADER, corpus, mended, of_body, resealed
from experiments.runs import save

WIRE, NATIVE = pathlib.Path("cdl_jax/wire"), pathlib.Path("cdl_jax/native")
# What CMake builds the codec from; the CPU kernels beside it decode nothing.
CODEC = ("arena", "changes", "codec", "digest", "floats", "numbers", "python", "scan")
BLOCK = 10_000
OUTCOMES = (
    "mutants", "raw_accepted", "mended_refused", "mended_canonical", "resealed_refused",
    "resealed_canonical",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the run."""

    mutants: int = 1_000_000
    """Each decoded raw, resealed and mended."""
    guided_seconds: int = 600
    """Of the coverage-guided run; 0 leaves it out."""
    seconds: float = float("inf")
    """Mutants end behind the block in which so many have passed; the same command goes on."""
    seed: int = 0
    """Of the mutants."""
    results: str = "experiments/results"
    """Folder of the results."""


def main(options: Options) -> int:
    """Runs both, writes fuzz.json; raises where something is accepted that must not be."""
    begun = time.monotonic()
    of = {"seed": options.seed, "sources": sources()}
    result = earlier(pathlib.Path(options.results) / "fuzz.json", of)
    while result["mutants"] < options.mutants:
        started = time.monotonic()
        count = min(BLOCK, options.mutants - result["mutants"])
        add(result, mutants(count, np.random.default_rng([options.seed, result["mutants"]])))
        result["seconds"] = round(result["seconds"] + time.monotonic() - started, 1)
        write(options, result)
        if time.monotonic() - begun > options.seconds:
            return 0
    add(result, bounds())
    write(options, result)
    if options.guided_seconds:
        result["guided"] = guided(options.guided_seconds)
        write(options, result)
    return 0


def sources() -> str:
    """Digest of the decoder and of what tests it."""
    native = [p for p in NATIVE.iterdir() if p.stem in CODEC and p.suffix in (".cc", ".h")]
    code = sorted([*WIRE.glob("*.py"), *native, pathlib.Path(__file__), pathlib.Path(fed.__file__)])
    return xxhash.xxh3_128_hexdigest(b"".join(path.read_bytes() for path in code))


def earlier(path: pathlib.Path, of: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run of the same seed and sources found, or nothing yet."""
    nothing = dict.fromkeys(OUTCOMES, 0) | {"slowest_ms": 0.0, "bombs": 0}
    nothing |= {"share_of_bound": 0.0, "share_of_bound_numpy": 0.0}
    nothing |= {"seconds": 0.0, "deeds": {deed: dict.fromkeys(OUTCOMES, 0) for deed in DEEDS}}
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if {name: found.get(name) for name in of} == of else of | nothing


def write(options: Options, result: dict[str, Any]) -> None:
    """Saves what has been found so far."""
    command = f"python -m experiments.fuzz --mutants {options.mutants}"
    bound = {"bound": "512 bytes a byte of the update and 32 MiB"}
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "xxhash")}
    if "guided" in result:
        versions["atheris"] = importlib.metadata.version("atheris")
    about = {"command": command, "versions": {"python": platform.python_version()} | versions}
    native = {"native": numbers._codec is not None}
    save(options.results, "fuzz.json", result | bound | native | about)


def add(result: dict[str, Any], found: dict[str, Any]) -> None:
    """Adds the findings of some mutants to those of others."""
    for name, value in found.items():
        if isinstance(value, dict):
            add(result[name], value)
        else:
            result[name] = value + result[name] if name in OUTCOMES else max(value, result[name])


def mutants(count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Decodes so many mutants in every form; what became of them, in all and by deed."""
    seeds = corpus()
    outcome: dict[str, Any] = dict.fromkeys(OUTCOMES, 0)
    by_deed: dict[str, Any] = {deed: dict.fromkeys(OUTCOMES, 0) for deed in DEEDS}
    most: dict[str, Any] = {"slowest_ms": 0.0}
    for turn in range(count):
        mutant, deeds = fed.mutate(rng, seeds)
        begun = time.process_time()
        one = became(mutant)
        took = {"slowest_ms": round(1e3 * (time.process_time() - begun), 1)}
        for counts in (outcome, *(by_deed[deed] for deed in deeds)):
            add(counts, one)
        if turn % 100 == 0:
            agree(resealed(mutant))
            agree(mended(mutant))
            took |= shares(mended(mutant))
        most = {name: max(value, most.get(name, 0)) for name, value in (most | took).items()}
    if outcome["raw_accepted"]:
        raise AssertionError(f"{outcome['raw_accepted']} damaged updates were accepted")
    return outcome | {"deeds": by_deed} | most


def became(mutant: bytes) -> dict[str, int]:
    """What the decoder makes of each form of a mutant, as counts."""
    body, whole = mended(mutant), resealed(mutant)
    alone = accepted(body)
    together = alone if whole == body else accepted(whole)
    found = [("mended", alone), ("resealed", together)]
    names = {f"{form}_{'canonical' if taken else 'refused'}": 1 for form, taken in found}
    return {"mutants": 1, "raw_accepted": int(accepted(mutant))} | names


def accepted(blob: bytes) -> bool:
    """Whether an update decodes; it must then be the one form of what it says."""
    try:
        header, update = decode_with_header(blob)
    except WireError:
        return False
    if encode_update(update, lineage=header.lineage) != fed.unsigned(blob):
        raise AssertionError(f"accepted in another form than its own: {blob.hex()}")
    return True


def agree(blob: bytes) -> None:
    """Decodes natively and in NumPy; the outcome must be the same."""
    native = accepted(blob)
    with in_numpy():
        if accepted(blob) != native:
            raise AssertionError(f"native takes it: {native}, NumPy not the same: {blob.hex()}")


@contextlib.contextmanager
def in_numpy() -> Iterator[None]:
    """As where no native codec was built."""
    codec, numbers._codec = numbers._codec, None
    try:
        yield
    finally:
        numbers._codec = codec


def bounds() -> dict[str, Any]:
    """The largest shares of the bound that bombs and heavy bodies take, and how many they are."""
    found = [shares(blob) for blob in itertools.chain(fed.bombs(), fed.heavy())]
    return {name: max(one[name] for one in found) for name in found[0]} | {"bombs": len(found)}


def shares(blob: bytes) -> dict[str, float]:
    """`allocation` natively and in NumPy."""
    native = allocation(blob)
    with in_numpy():
        return {"share_of_bound": native, "share_of_bound_numpy": allocation(blob)}


def allocation(blob: bytes) -> float:
    """The peak that decoding takes, as a share of the bound."""
    tracemalloc.start()
    with contextlib.suppress(WireError):
        decode_update(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    share = peak / (512 * len(blob) + (32 << 20))
    if share > 1:
        raise AssertionError(f"{peak} bytes were allocated for {len(blob)}: {blob[:200].hex()}")
    return round(share, 3)


def guided(seconds: int) -> dict[str, Any]:
    """A coverage-guided run in a process of its own; its last line of statistics."""
    with tempfile.TemporaryDirectory() as folder:
        for number, blob in enumerate(corpus()):
            (pathlib.Path(folder) / f"{number}").write_bytes(blob[HEADER:-CHECKSUM])
        limits = [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=10",
            "-rss_limit_mb=2048",
        ]
        command = [sys.executable, "-m", "experiments.fuzz", "guided", *limits, folder]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"the guided run found something:\n{done.stderr[-3000:]}")
    last = re.findall(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)
    if not last:
        raise AssertionError(f"the guided run saw no coverage:\n{done.stderr[-3000:]}")
    names = ("inputs", "edges", "features", "corpus")
    return dict(zip(names, map(int, last[-1]), strict=True)) | {"seconds": seconds}


def guide(arguments: list[str]) -> None:
    """Hands the decoder to libFuzzer, which does not return."""
    atheris: Any = importlib.import_module("atheris")
    # Atheris sees nothing of what an editable install's own loader loads; the path has it too.
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable")]
    with atheris.instrument_imports(include=["cdl_jax.wire"]):
        for name in [name for name in sys.modules if name.startswith("cdl_jax.wire")]:
            del sys.modules[name]
        from cdl_jax.wire import WireError, decode_update, encode_update

    def decode(body: bytes) -> None:
        blob = of_body(body)
        try:
            update = decode_update(blob)
        except WireError:
            return
        if encode_update(update) != blob:
            raise AssertionError("accepted in another form than its own")

    atheris.Setup([sys.argv[0], *arguments], decode)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["guided"]:
        guide(sys.argv[2:])
    sys.exit(main(tyro.cli(Options, description=__doc__)))
