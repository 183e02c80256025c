"""A tiny residual network with an MLP head, and images that it can learn to score."""

import math

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.settings import Setting

NUM_SCORES = 10
IMAGE_SIZE = 20
NUM_VOTES = 200
_WIDTHS = (8, 12, 16, 24)


class Block(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, num_in: int, num_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=norm == "none")
        self.norm1 = _norm(norm, num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=norm == "none")
        self.norm2 = _norm(norm, num_out)
        is_same = stride == 1 and num_in == num_out
        self.shortcut: nn.Module = nn.Identity() if is_same else nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Apply the block."""
        inner = self.norm2(self.conv2(self.norm1(self.conv1(images)).relu()))
        found: Tensor = (inner + self.shortcut(images)).relu()
        return found


class TinyResNet(nn.Module):
    """Four stages, then the head; the names are those of torchvision's ResNet, so that telemetry finds the groups."""

    def __init__(self, setting: Setting, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.is_detached = False
        self.feature_gradient = 1.0
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, 1, 1)
        before = _WIDTHS[0]
        for number, width in enumerate(_WIDTHS, start=1):
            blocks = []
            for depth in range(setting.depth):
                stride = 2 if depth == 0 and number > 1 else 1
                blocks.append(Block(before, width, stride, setting.norm))
                before = width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        layers: list[nn.Module] = []
        for width in setting.hidden:
            layers += [nn.Linear(before, width), activation()]
            before = width
        self.fc = nn.Sequential(*layers, nn.Linear(before, NUM_SCORES))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # as in torchvision's ResNet

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, size, size] -> [batch, 10] logits."""
        features = self.conv1(images).relu()
        for number in range(1, len(_WIDTHS) + 1):
            features = self.get_submodule(f"layer{number}")(features)
        features = features.mean(dim=(2, 3))
        if self.feature_gradient != 1.0 and features.requires_grad:
            features.register_hook(lambda gradient: gradient * self.feature_gradient)
        logits: Tensor = self.fc(features.detach() if self.is_detached else features)
        return logits


def batch_of(setting: Setting, step: int) -> tuple[Tensor, Tensor]:
    """Images [batch, 3, size, size], about standard normal, and distributions [batch, 10] that follow from them."""
    random = torch.Generator().manual_seed(setting.seed * 1_000_003 + step)
    quality = torch.rand(setting.batch_size, generator=random) * 2 - 1
    grid = torch.linspace(0, 2 * math.pi, IMAGE_SIZE)
    waves = torch.sin(grid[None, :, None] * (2 + quality[:, None, None]) + grid[None, None, :])
    colours = torch.stack((waves + quality[:, None, None], waves, waves * quality[:, None, None]), dim=1)
    images = colours + 0.5 * torch.randn(setting.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=random)
    scores = torch.arange(1.0, NUM_SCORES + 1)
    truth = (-((scores - 5.5 - 3 * quality[:, None]) ** 2) / 3).softmax(dim=1)
    return images, truth


def emd(logits: Tensor, truth: Tensor) -> Tensor:
    """The squared EMD of NIMA; unlike the package's own, `truth` is taken as it is given."""
    return (logits.float().softmax(dim=1) - truth).cumsum(dim=1).square().mean()


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width)
    return nn.GroupNorm(4, width) if kind == "group" else nn.Identity()
