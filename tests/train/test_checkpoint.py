import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cdl_jax.errors import CheckpointError
from cdl_jax.train.checkpoint import Checkpoints, _read


def odd_bits(dtype, shape=(3, 5)):
    """Every kind of bits: NaNs with payloads, -0.0, subnormals, infinities."""
    size = np.dtype(dtype).itemsize
    words = np.random.default_rng(0).integers(0, 256, (*shape, size), dtype=np.uint8)
    return words.view(dtype).reshape(shape)


def tree_of_all_kinds():
    return {
        "f32": jnp.asarray(odd_bits(np.float32)),
        "bf16": jnp.asarray(odd_bits(ml_dtypes.bfloat16)),
        "f16": jnp.asarray(odd_bits(np.float16)),
        "i32": jnp.asarray(odd_bits(np.int32)),
        "u8": jnp.asarray(odd_bits(np.uint8)),
        "mask": jnp.array([True, False]),
        "nested/with~signs": {"count": jnp.zeros((), jnp.uint32), "empty": jnp.zeros((0, 3))},
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(7, impl="rbg"), 3),
        "wide": np.arange(5, dtype=np.int64) << 40,
    }


def bits(tree):
    out = []
    for leaf in jax.tree.leaves(tree):
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        host = np.asarray(jax.random.key_data(leaf) if typed else leaf)
        out.append((str(leaf.dtype), leaf.shape, host.tobytes()))
    return out


def test_every_bit_comes_back_with_its_dtype_and_the_kind_of_each_key(tmp_path):
    tree = tree_of_all_kinds()
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(3, {"state": tree, "sampler": {"wide": tree["wide"]}}, {"a": [1, "x"]})
    checkpoints.close()
    saved = Checkpoints(tmp_path / "c").newest()
    wide = tree.pop("wide")
    like = jax.eval_shape(lambda: tree)
    assert bits(saved.restore("state", like)) == bits(tree)
    assert (saved.version, saved.record["a"]) == (3, [1, "x"])
    found = saved.under("sampler")["wide"]
    assert found.dtype == wide.dtype
    assert found.tolist() == wide.tolist()


def test_what_is_saved_is_the_tree_at_the_call_though_it_is_donated_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=9)
    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(300_000)
    for version in range(6):
        checkpoints.save(version, {"x": x}, {})
        held = x
        x = bump(x)
        assert held.is_deleted()  # no view is left that would keep the step from its place
    checkpoints.wait()
    for version in range(6):
        arrays = _read(tmp_path / "c" / str(version))
        assert (arrays["x"].view(np.float32) == version).all()


def test_the_newest_stay_and_a_half_written_one_is_never_chosen(tmp_path):
    folder = tmp_path / "c"
    checkpoints = Checkpoints(folder, keep=2)
    for version in (1, 5, 9):
        checkpoints.save(version, {"x": jnp.ones(4)}, {"version": version})
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["5", "9"]
    draft = folder / "13.orbax-checkpoint-tmp"
    (draft / "state").mkdir(parents=True)
    again = Checkpoints(folder, keep=2)
    assert again.newest().version == 9
    assert not draft.exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# Orbax leaves tasks of its event loop behind when it fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("spoil", [cut, zero, flip, pathlib.Path.unlink])
def test_whatever_file_is_damaged_its_bits_are_not_taken_for_the_checkpoints(
    tmp_path, capsys, spoil
):
    """The older one is, or these very bits, where the file says nothing of them."""
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    trees = {v: {"x": jnp.full(300_000, v), "y": {"z": jnp.full(7, v)}} for v in (5, 9)}
    for version, tree in trees.items():
        checkpoints.save(version, tree, {"at": version})
    checkpoints.wait()
    shutil.copytree(tmp_path / "c" / "9", tmp_path / "whole")
    older = 0
    for file in [p for p in (tmp_path / "whole").rglob("*") if p.is_file() and p.stat().st_size]:
        shutil.rmtree(tmp_path / "c" / "9")
        shutil.copytree(tmp_path / "whole", tmp_path / "c" / "9")
        spoil(tmp_path / "c" / "9" / file.relative_to(tmp_path / "whole"))
        saved = checkpoints.newest()
        told = capsys.readouterr().err
        assert told.count(" is damaged (") == (saved.version == 5)
        assert told.count("; going on from version 5\n") == (saved.version == 5)
        assert saved.record["at"] == saved.version
        assert bits(saved.restore("", trees[5])) == bits(trees[saved.version])
        older += saved.version == 5
    assert older >= 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_one_pushes_out_no_whole_one(tmp_path):
    folder = tmp_path / "c"
    checkpoints = Checkpoints(folder, keep=2)
    for version in (8, 12):
        checkpoints.save(version, {"x": jnp.ones(4)}, {})
    checkpoints.close()
    flip(
        max((p for p in (folder / "12").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    )
    again = Checkpoints(folder, keep=1)
    assert again.newest().version == 8
    again.save(9, {"x": jnp.ones(4)}, {})
    again.close()
    assert [p.name for p in folder.iterdir()] == ["9"]
    assert Checkpoints(folder, keep=1).newest().version == 9


def test_another_models_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.newest() is None
    checkpoints.save(2, {"state": {"w": jnp.ones(3)}}, {})
    saved = checkpoints.newest()
    with pytest.raises(CheckpointError, match=r"version 2 has uint32\[3\] for state/w, this run"):
        saved.restore("state", {"w": jnp.ones(4)})
    with pytest.raises(CheckpointError, match="has nothing for state/v"):
        saved.restore("state", {"v": jnp.ones(3)})


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot read or write the checkpoints in"):
        Checkpoints(tmp_path / "file" / "c")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_none_is_whole_the_mend_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", mend="begin anew")
    for version in (1, 2):
        checkpoints.save(version, {"x": jnp.ones(4)}, {})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "c" / "1")
    (tmp_path / "c" / "2").rename(tmp_path / "c" / "3")  # another version's place
    with pytest.raises(CheckpointError, match=r"3 is damaged \(its digest is another\), and"):
        checkpoints.newest()
    (tmp_path / "c" / "1").mkdir()
    with pytest.raises(CheckpointError, match=r"3 is damaged .*, and no other in .*: begin anew"):
        checkpoints.newest()
