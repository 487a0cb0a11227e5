"""A ResNet for any number of input planes, wide or narrow, with torchvision's names of weights."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.calibration import Logits

Planes = Float[Tensor, "batch channels height width"]
Maps = Float[Tensor, "batch depth h w"]


class ResNet(nn.Module):
    """ResNet (He et al., 2016, CVPR) that ends in one logit; the default is a ResNet-50.

    Args:
        channels: planes of the input.
        blocks: in each stage; a stage has twice the channels of the one before, at half its size.
        width: channels of the first stage.
        bottleneck: blocks of three convolutions and four times the channels, not of two.
        small: for pictures of about 32 px, whose first convolution keeps their size.
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        bottleneck: bool = True,
        small: bool = False,
    ) -> None:
        super().__init__()
        # imported here: torchvision takes seconds, and who only answers by another detector needs none of it
        from torchvision.models.resnet import BasicBlock, Bottleneck

        kind = Bottleneck if bottleneck else BasicBlock
        size, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(channels, width, size, stride, size // 2, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stages, inside = len(blocks), width
        for number, count in enumerate(blocks):
            planes = width * 2**number
            stride, outside = (1 if number == 0 else 2), planes * kind.expansion
            changed = stride != 1 or inside != outside
            head = kind(inside, planes, stride, _shortcut(inside, outside, stride) if changed else None)
            rest = (kind(outside, planes) for _ in range(count - 1))
            self.add_module(f"layer{number + 1}", nn.Sequential(head, *rest))
            inside = outside
        self.depth = inside
        self.fc = nn.Linear(inside, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def maps(self, planes: Planes) -> Maps:
        """Return what the last stage sees."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(planes))))
        for number in range(self.stages):
            x = getattr(self, f"layer{number + 1}")(x)
        return x

    def judge(self, maps: Maps) -> Logits:
        """Return the logits of pictures by their `maps`."""
        return self.fc(maps.mean((2, 3)))[:, 0]

    def forward(self, planes: Planes) -> Logits:
        return self.judge(self.maps(planes))

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a torchvision ResNet of the same blocks, such as one trained on ImageNet.

        Further input planes than its three begin at zero, and the last layer is not taken.

        Raises ValueError where the blocks are others.
        """
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("fc.")}
        taken = {name: value for name, value in weights.items() if name in own}
        first = taken.get("conv1.weight")
        if first is not None and first.shape[1] < own["conv1.weight"].shape[1]:
            taken["conv1.weight"] = torch.zeros_like(own["conv1.weight"])
            taken["conv1.weight"][:, : first.shape[1]] = first
        counted = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
        for name, value in own.items():
            found = {**counted, **taken}.get(name)
            if found is None or found.shape != value.shape:
                raise ValueError(f"the weights are of another ResNet: {name} does not fit")
        self.load_state_dict({**self.state_dict(), **taken})


def _shortcut(inside: int, outside: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
