"""Logits, gradients and running statistics against PyTorch, with the weights copied over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cdl_jax.models import classifier, create_model
from cdl_jax.models.torchvision import load_torchvision

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("experiments.bench.torch_models")

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(path) -> str:
    *modules, leaf = (part.key for part in path)
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def to_flax(name: str, tensor) -> np.ndarray:
    """PyTorch's layout to ours: OIHW to HWIO, OI to IO; LeNet5's fc1 reads channels last."""
    value = tensor.detach().numpy().astype(np.float32)
    if name == "fc1.weight":
        value = value.reshape(120, 16, 5, 5).transpose(0, 2, 3, 1).reshape(120, 400)
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value


def copy(tree, tensors):
    """The tree with PyTorch's values; every path must name one tensor of the same shape."""

    def take(path, leaf):
        value = to_flax(torch_name(path), tensors[torch_name(path)])
        assert value.shape == leaf.shape, torch_name(path)
        return jnp.array(value)

    return jax.tree.map_with_path(take, tree)


def sample(name: str, batch: int):
    rng = np.random.default_rng(0)
    shape = (28, 28, 1) if name == "lenet5" else (32, 32, 3)
    image = rng.normal(size=(batch, *shape)).astype(np.float32)
    return image, rng.integers(0, 10, batch).astype(np.int32)


@pytest.mark.parametrize("name", torch_models.MODELS)
def test_names_are_torchvisions(name):
    functions = classifier(create_model(name))
    key = jax.eval_shape(lambda: jax.random.key(0))
    trees = jax.eval_shape(functions.init_fn, key, sample(name, 2)[0])
    ours = {
        torch_name(path): leaf.shape
        for tree in trees
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    with torch.device("meta"):
        state = torch_models.MODELS[name](10).state_dict()
    theirs = {k: v.shape for k, v in state.items() if "num_batches" not in k}
    assert ours.keys() == theirs.keys()
    assert all(sorted(ours[k]) == sorted(theirs[k]) for k in ours)


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
def test_step_matches(name):
    torch.manual_seed(0)
    net = torch_models.MODELS[name](10).train()
    image, label = sample(name, 16)
    init_fn, loss_fn, predict_fn = classifier(create_model(name))
    key = jax.random.key(0)
    shapes = jax.eval_shape(init_fn, key, image)
    params, state = (copy(tree, net.state_dict()) for tree in shapes)

    logits = net(torch.tensor(image.transpose(0, 3, 1, 2).copy()))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(label, dtype=torch.int64))
    loss.backward()

    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (got, (new_state, _)), grads = run(params, state, {"image": image, "label": label}, key)
    np.testing.assert_allclose(got, loss.item(), atol=1e-4)
    expected = copy(grads, {k: p.grad for k, p in net.named_parameters()})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads, expected)
    moved = copy(new_state, net.state_dict())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), new_state, moved)

    net.eval()
    logits = net(torch.tensor(image.transpose(0, 3, 1, 2).copy())).detach()
    served = jax.jit(predict_fn)(params, moved, image)
    np.testing.assert_allclose(served, logits, atol=1e-4)


def moved_statistics(net) -> None:
    """Statistics and affine parameters as of a trained net: none of them 0 or 1."""
    for name, tensor in net.state_dict().items():
        module = name.rpartition(".")[0]
        if f"{module}.running_mean" in net.state_dict() and tensor.is_floating_point():
            low, high = (-0.3, 0.3) if name.endswith(("bias", "mean")) else (0.5, 1.5)
            torch.nn.init.uniform_(tensor, low, high)


@pytest.mark.parametrize("name", torch_models.MODELS)
def test_loaded_weights_answer_alike(tmp_path, name):
    torch.manual_seed(1)
    net = torch_models.MODELS[name](10).eval()
    moved_statistics(net)
    arrays = {k: np.ascontiguousarray(v.numpy()) for k, v in net.state_dict().items()}
    safetensors.numpy.save_file(arrays, tmp_path / "weights")
    image, _ = sample(name, 8)
    init_fn, _, predict_fn = classifier(create_model(name))
    shapes = jax.eval_shape(init_fn, jax.random.key(0), image)
    trees = load_torchvision(tmp_path / "weights", name, *shapes)
    with torch.no_grad():
        expected = net(torch.tensor(image.transpose(0, 3, 1, 2).copy())).numpy()
    assert 0.01 < expected.std() < 100
    np.testing.assert_allclose(jax.jit(predict_fn)(*trees, image), expected, atol=1e-4, rtol=1e-5)
