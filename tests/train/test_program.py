import platform

import jax
import pytest

from cdl_jax.train import program as module
from cdl_jax.train.program import program

HERE = program()
INFO = """processor\t: 0
model name\t: {}
flags\t\t: fpu sse2 avx2 {} avx fma smep
processor\t: 1
flags\t\t: none
"""


def differs(before=HERE, **options):
    now = program(**options)
    return {name: now[name] for name in now if now[name] != before[name]}


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Writes what the system tells of its CPU."""
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "_CACHE", tmp_path / "size")

    def write(info, cache="32K\n"):
        (tmp_path / "cpuinfo").write_text(info)
        (tmp_path / "size").write_text(cache)

    return write


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [("NPROC", "41", {"threads": 41}), ("PJRT_NPROC", " 42", {"threads": 42}),
     ("NPROC", "many", {}), ("XLA_FLAGS", "--xla_a=AVX2", {"flags": "--xla_a=AVX2"}),
     ("NVIDIA_TF32_OVERRIDE", "0", {"NVIDIA_TF32_OVERRIDE": "0"})],
)  # fmt: skip
def test_the_environment(monkeypatch, variable, value, found):
    monkeypatch.setenv(variable, value)
    assert differs() == found


def test_the_threads_are_those_that_xla_takes_first(monkeypatch):
    monkeypatch.setenv("NPROC", "41")
    monkeypatch.setenv("PJRT_NPROC", "42")
    assert differs() == {"threads": 42}


def test_flags_in_a_file_are_what_it_holds(monkeypatch, tmp_path):
    (tmp_path / "flags").write_text("--xla_a=1\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert differs() == {"flags": "--xla_a=1"}


def test_settings_of_jax_as_they_are_in_this_context():
    with jax.enable_x64(True), jax.default_matmul_precision("float32"):
        found = differs()
    assert found == {"jax_enable_x64": True, "jax_default_matmul_precision": "float32"}
    assert differs(form="scan") == {"form": "scan"}


def test_releases_of_what_computes(monkeypatch):
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: name + " 9")
    found = {name: name + " 9" for name in ("jax", "jaxlib", "numpy", "optax", "flax")}
    assert differs() == found


def test_cpus_of_one_kind_are_one_and_of_another_instruction_set_or_cache_are_not(cpu):
    cpu(INFO.format("one", "avx512f"))
    before = program()
    assert before["cpu"] == f"{platform.machine()} 32K avx avx2 avx512f fma"
    cpu(INFO.format("another", "avx512f hypervisor"))
    assert not differs(before)
    cpu(INFO.format("one", ""))
    assert differs(before) == {"cpu": f"{platform.machine()} 32K avx avx2 fma"}
    cpu(INFO.format("one", "avx512f"), "48K\n")
    assert differs(before) == {"cpu": f"{platform.machine()} 48K avx avx2 avx512f fma"}
    cpu("Features\t: fp asimd sve2 aes\n")
    assert differs(before) == {"cpu": f"{platform.machine()} 32K asimd sve2"}
