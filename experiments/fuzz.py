"""Mutants of updates against the decoder: damage must be refused, never believed or crash.

    python -m experiments.fuzz                    a million mutants, and ten minutes guided
    python -m experiments.fuzz --mutants 20000 --guided-seconds 0 --results /tmp/fuzz

Every mutant of the golden files (see `DEEDS`; one to three things are done to each) is decoded as
it is, and again with its length and checksum mended, so that it reaches the decoder of the body.
Expected: of the first none is accepted; of the second each gives a WireError or an update that
re-encodes to exactly its bytes. Every 100th is decoded by the NumPy form too, which must take the
same ones, and under tracemalloc; so are bombs (counts as large as the body lets pass): allocation
must stay below the bound in cdl_jax/wire/FORMAT.md. The guided run feeds bodies to the decoder by
coverage of cdl_jax.wire (atheris and libFuzzer, `pip install 'cdl_jax[fuzz]'`).

Writes fuzz.json after every 10,000 mutants; the same command goes on from there, as long as the
decoder's sources are those it was begun with. A mutant counts under each deed done to it.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import pathlib
import platform
import re
import struct
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

from cdl_jax.wire import WireError, decode_update, encode_update, numbers, read_header
from cdl_jax.wire.numbers import varint
from experiments.runs import save

GOLDEN = pathlib.Path("tests/wire/golden")
SOURCES = [pathlib.Path("cdl_jax/wire"), pathlib.Path("cdl_jax/native"), pathlib.Path(__file__)]
HEADER, CHECKSUM, BLOCK = 72, 16, 10_000
EXTREMES = [0, 1, 127, 128, 2**14, 2**17, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1]
DEEDS = ("bit_flip", "byte", "cut", "splice", "extreme_number", "extreme_length")
OUTCOMES = ("mutants", "raw_accepted", "mended_refused", "mended_canonical")


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the run."""

    mutants: int = 1_000_000
    """Each decoded twice, raw and mended."""
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
    if options.guided_seconds:
        result["guided"] = guided(options.guided_seconds)
        write(options, result)
    return 0


def sources() -> str:
    """Digest of the decoder and of this file."""
    files = [p for root in SOURCES for p in ([root] if root.is_file() else root.iterdir())]
    code = sorted(p for p in files if p.suffix in (".py", ".cc", ".h"))
    return xxhash.xxh3_128_hexdigest(b"".join(path.read_bytes() for path in code))


def earlier(path: pathlib.Path, of: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run of the same seed and sources found, or nothing yet."""
    nothing = dict.fromkeys(OUTCOMES, 0) | {"slowest_ms": 0.0, "share_of_bound": 0.0}
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
    """Decodes so many mutants both ways; what became of them, in all and by deed."""
    seeds = corpus()
    outcome: dict[str, Any] = dict.fromkeys(OUTCOMES, 0)
    by_deed: dict[str, Any] = {deed: dict.fromkeys(OUTCOMES, 0) for deed in DEEDS}
    slowest, widest = 0.0, 0.0
    for turn in range(count):
        mutant, deeds = mutate(rng, seeds)
        begun = time.perf_counter()
        became = "mended_canonical" if accepted(mended(mutant)) else "mended_refused"
        slowest = max(slowest, time.perf_counter() - begun)
        one: dict[str, Any] = {
            "mutants": 1,
            became: 1,
            "raw_accepted": mutant not in seeds and accepted(mutant),
        }
        for counts in (outcome, *(by_deed[deed] for deed in deeds)):
            add(counts, one)
        if turn % 100 == 0:
            agree(mended(mutant))
            widest = max(widest, allocation(mended(mutant)))
    if outcome["raw_accepted"]:
        raise AssertionError(f"{outcome['raw_accepted']} damaged updates were accepted")
    for bomb in bombs():
        widest = max(widest, allocation(bomb))
    found = {"slowest_ms": round(1e3 * slowest, 1), "share_of_bound": round(widest, 3)}
    return outcome | {"deeds": by_deed} | found


def corpus() -> list[bytes]:
    """The golden files."""
    return [path.read_bytes() for path in sorted(GOLDEN.glob("*.update"))]


def accepted(blob: bytes) -> bool:
    """Whether an update decodes; it must then be the one form of what it says."""
    try:
        update = decode_update(blob)
    except WireError:
        return False
    again = encode_update(update, lineage=read_header(blob).lineage)
    if again[HEADER:-CHECKSUM] != blob[HEADER : HEADER + len(again) - HEADER - CHECKSUM]:
        raise AssertionError(f"accepted in another form than its own: {blob.hex()}")
    return True


def agree(blob: bytes) -> None:
    """Decodes natively and in NumPy; the outcome must be the same."""
    native, codec = accepted(blob), numbers._codec
    try:
        numbers._codec = None
        if accepted(blob) != native:
            raise AssertionError(f"native takes it: {native}, NumPy not the same: {blob.hex()}")
    finally:
        numbers._codec = codec


def mutate(rng: np.random.Generator, seeds: list[bytes]) -> tuple[bytes, set[str]]:
    """One of the seeds with one to three things done to it, and which."""
    blob = bytearray(seeds[rng.integers(len(seeds))])
    done = set()
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(HEADER if rng.random() < 0.8 else 0, len(blob)))
        deed = DEEDS[rng.integers(len(DEEDS))]
        done.add(deed)
        damage(blob, deed, place, rng, seeds)
        if len(blob) < HEADER + 1:
            break
    return bytes(blob), done


def damage(
    blob: bytearray, deed: str, place: int, rng: np.random.Generator, seeds: list[bytes]
) -> None:
    """Does one thing to the bytes."""
    if deed == "bit_flip":
        blob[place] ^= 1 << rng.integers(8)
    elif deed == "byte":
        blob[place] = rng.integers(256)
    elif deed == "cut":
        stop = place + int(rng.integers(1, 40))
        del blob[place : stop if rng.random() < 0.7 else len(blob)]
    elif deed == "splice":
        other = seeds[rng.integers(len(seeds))]
        start = int(rng.integers(len(other)))
        blob[place : place + int(rng.integers(40))] = other[start : start + rng.integers(80)]
    elif deed == "extreme_number":
        blob[place : place + int(rng.integers(1, 4))] = varint(int(rng.choice(EXTREMES)))
    else:
        blob[68:72] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFFFFFF)


def mended(blob: bytes) -> bytes:
    """The same with a header that begins well, a length that holds, and a good checksum."""
    head, body = blob[:HEADER].ljust(HEADER, b"\0"), blob[HEADER:-CHECKSUM]
    base = struct.unpack_from("<I", head, 44)[0] % (2**32 - 1)
    start = _start() + head[12:44] + struct.pack("<II", base, base + 1) + head[52:68]
    return sealed(start + struct.pack("<I", len(body)) + body)


def sealed(content: bytes) -> bytes:
    """Header and body with their checksum."""
    return content + xxhash.xxh3_128_digest(content)


def of_body(body: bytes) -> bytes:
    """An update with this body."""
    tail = bytes(32) + struct.pack("<II", 0, 1) + bytes(16)
    return sealed(_start() + tail + struct.pack("<I", len(body)) + body)


def _start() -> bytes:
    """Magic, format version and no flags."""
    return b"\x89CDLJX\r\n" + struct.pack("<HH", 2, 0)


def bombs() -> Iterator[bytes]:
    """Bodies that announce as much as they can, in every form, most of them not canonical."""
    filler = bytes([255]) * 40_000
    for kind in (0, 4, 32, 64, 96, 128 + 4, 128 + 64 + 4, 12, 3):
        for count in (8 * len(filler) - 200, 4 * len(filler), len(filler), 2**31 - 1, 2**40):
            number = np.array([min(count, 2**32) - 1], np.uint32)
            for head in (b"\0", b"\2", b"", b"\0\0", b"\x21", b"\2\x21", b"\1\0\x21\0", b"\x40"):
                leaves = bytes([1, 0, 2 if kind & 32 else 1])
                scale = b"\x7f" if kind & 128 else b""
                counts = numbers.encode(number)
                yield of_body(bytes([kind]) + leaves + counts + scale + head + filler)
    yield of_body(b"\x20\1\0" + varint(131_071) + filler)
    yield of_body(b"\0\1\0" + varint(131_071) + b"\x21" + bytes(16_384) + filler)


def allocation(blob: bytes) -> float:
    """The peak that decoding takes, as a share of the bound."""
    tracemalloc.start()
    accepted(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    share = peak / (512 * len(blob) + (32 << 20))
    if share > 1:
        raise AssertionError(f"{peak} bytes were allocated for {len(blob)}: {blob[:200].hex()}")
    return share


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
