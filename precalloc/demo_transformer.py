"""A small transformer on the demo's digits, read row by row; trained by ``benchmarks/train_demo.py``."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from precalloc.demo_model import ASSETS

WEIGHTS = ASSETS / "digits_transformer.safetensors"


def build() -> nn.Module:
    """Build the trained network, in evaluation mode."""
    with torch.device("meta"):  # no initial weights are drawn: the global random state stays as it is
        model = DigitsTransformer()
    model.load_state_dict(load_file(WEIGHTS), assign=True)
    return model.eval()


class DigitsTransformer(nn.Module):
    """Pre-norm encoder on the eight rows of a digit, with learned positions and mean pooling."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.position = nn.Parameter(torch.zeros(8, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 1, 8, 8) with grey levels 0 to 16 to logits (n, 10)."""
        x = self.embedding(images.squeeze(1).to(self.position.dtype) / 16) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(self.norm(x).mean(dim=1))
        return logits


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, rows, width) to the same shape."""
        n, rows, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, rows, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(n, rows, width))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y
