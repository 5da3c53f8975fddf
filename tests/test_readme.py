"""The README's Python is run, and its own-model example stays short."""

import pathlib
import re

import jax

README = pathlib.Path(__file__).parent.parent / "README.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_of_ones_own_model_runs_and_is_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = [b for b in blocks() if "def loss_fn" in b]
    assert len(example.splitlines()) < 30
    scope = {}
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW does not pass under strict
        exec(compile(example, str(README), "exec"), scope)
    assert scope["replica"].version == 50
    assert float(scope["info"].loss) < scope["first_loss"] / 2


def test_every_command_that_the_readme_names_is_a_make_target():
    targets = re.findall(r"^([a-z0-9-]+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"make ([a-z0-9-]+)", README.read_text()))
    assert {"demo", "test"} <= named <= set(targets)
