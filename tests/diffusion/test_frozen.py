import pytest
import torch
from torch import nn

from diffusion.frozen import FrozenConv2d, make_lean
from diffusion.load import load

SHAPES = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "pointwise": {"kernel_size": 1, "bias": False},
    "same": {"kernel_size": 3, "padding": "same"},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


def pair(**shape):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, **shape).double().requires_grad_(False)
    lean = nn.Conv2d(4, 6, **shape).double().requires_grad_(False)
    lean.load_state_dict(plain.state_dict())
    make_lean(lean)
    assert type(lean) is FrozenConv2d
    return plain, lean


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_gradients_and_second_derivatives_are_the_plain_ones(name, layout):
    images = torch.rand(2, 4, 9, 8, dtype=torch.float64).contiguous(memory_format=layout)
    found = []
    for layer in pair(**SHAPES[name]):
        leaf = images.clone().requires_grad_()
        out = layer.to(memory_format=layout)(leaf)
        (first,) = torch.autograd.grad((out**3).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), leaf)
        found.append((out.detach(), first.detach(), second))
    for plain, lean in zip(*found, strict=True):
        torch.testing.assert_close(lean, plain)


def test_autocast_is_followed():
    plain, lean = (layer.float() for layer in pair(**SHAPES["plain"]))
    images = torch.rand(2, 4, 8, 8)
    found = []
    for layer in (plain, lean):
        leaf = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(leaf)
        found.append((out, torch.autograd.grad(out.float().square().sum(), leaf)[0]))
    assert found[1][0].dtype == torch.bfloat16
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_trained_weight_gets_its_gradient():
    plain, lean = pair(**SHAPES["plain"])
    images = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    for layer in (plain, lean):
        layer.requires_grad_(True)
        layer(images.clone().requires_grad_()).square().sum().backward()
    torch.testing.assert_close(lean.weight.grad, plain.weight.grad)
    torch.testing.assert_close(lean.bias.grad, plain.bias.grad)


def kept(model, images):
    """Bytes that the graph of an encoding keeps alive."""
    stores = {}

    def pack(tensor):
        stores[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.encode(images.clone().requires_grad_())
    return sum(stores.values())


def test_the_built_in_encoder_keeps_two_thirds_of_its_graph_or_less():
    model, images = load("builtin"), torch.rand(1, 3, 128, 128)
    lean = kept(model, images)
    for module in model.modules():
        if type(module) is FrozenConv2d:
            module.__class__ = nn.Conv2d
    assert lean < 2 / 3 * kept(model, images)


def test_a_trainable_copy_trains_its_convolutions():
    model = load("builtin")
    twin = model.trainable_copy()
    z_t, t = torch.randn(1, 16, 8, 8), torch.tensor([5])
    twin.predict(z_t, t).square().sum().backward()
    trained = [module for module in twin.denoiser.modules() if isinstance(module, nn.Conv2d)]
    assert trained
    assert all(module.weight.grad is not None for module in trained)
