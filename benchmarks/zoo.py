"""Networks at full size with random weights, as factories without arguments, and inputs for them.

Random weights are enough for structure, MACs and speed. Batch-norm statistics are set from one random batch, so that
activations stay finite. pytorchcv is imported module by module, since its index of all models needs torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, VOCABULARY = 1000, 30522


def _settled(model: nn.Module, *shape: int) -> nn.Module:
    """Set batch-norm statistics from one random batch, and evaluate with them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average of all batches, of which there is one
    with torch.no_grad():
        model.train()(torch.randn(shape))
    return model.eval()


def resnet50() -> nn.Module:
    """ResNet-50 with the stride in the first convolution of a block, as in the paper."""
    from pytorchcv.models.resnet import resnet50 as build

    torch.manual_seed(0)
    return _settled(build(), 2, 3, 224, 224)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 whose first block does not expand, as in the paper."""
    from pytorchcv.models.mobilenetv2 import mobilenetv2b_w1 as build

    torch.manual_seed(0)
    return _settled(build(), 2, 3, 224, 224)


def inception_v3() -> nn.Module:
    """InceptionV3."""
    from pytorchcv.models.inceptionv3 import inceptionv3 as build

    torch.manual_seed(0)
    return _settled(build(), 2, 3, 299, 299)


def shufflenet_v2() -> nn.Module:
    """ShuffleNetV2 at width 1."""
    from pytorchcv.models.shufflenetv2 import shufflenetv2_w1 as build

    torch.manual_seed(0)
    return _settled(build(), 2, 3, 224, 224)


class _ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class _Inception(nn.Module):
    def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.one = _ConvNorm(inputs, one, 1)
        self.three = nn.Sequential(_ConvNorm(inputs, three[0], 1), _ConvNorm(three[0], three[1], 3))
        self.five = nn.Sequential(_ConvNorm(inputs, five[0], 1), _ConvNorm(five[0], five[1], 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), _ConvNorm(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


def googlenet() -> nn.Module:
    """GoogLeNet (Szegedy et al. 2015, table 1) with batch norm and without its auxiliary heads."""
    torch.manual_seed(0)
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    body = nn.Sequential(
        _ConvNorm(3, 64, 7, 2), pool, _ConvNorm(64, 64, 1), _ConvNorm(64, 192, 3), pool,
        _Inception(192, 64, (96, 128), (16, 32), 32), _Inception(256, 128, (128, 192), (32, 96), 64), pool,
        _Inception(480, 192, (96, 208), (16, 48), 64), _Inception(512, 160, (112, 224), (24, 64), 64),
        _Inception(512, 128, (128, 256), (24, 64), 64), _Inception(512, 112, (144, 288), (32, 64), 64),
        _Inception(528, 256, (160, 320), (32, 128), 128), pool,
        _Inception(832, 256, (160, 320), (32, 128), 128), _Inception(832, 384, (192, 384), (48, 128), 128),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, CLASSES),
    )  # fmt: skip
    return _settled(body, 2, 3, 224, 224)


def _transformer(name: str, config: str, **options: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()


def bert_base() -> nn.Module:
    """BERT-base with a classification head, run at 128 tokens."""
    return _transformer("BertForSequenceClassification", "BertConfig")


def vit_b16() -> nn.Module:
    """ViT-B/16 at 224 pixels."""
    return _transformer("ViTForImageClassification", "ViTConfig", num_labels=CLASSES)


def gpt2() -> nn.Module:
    """GPT-2 small, with its tied embedding as the output head and no cache."""
    return _transformer("GPT2LMHeadModel", "GPT2Config", use_cache=False)


def whisper_tiny() -> nn.Module:
    """Whisper-tiny: encoder over 30 seconds of sound, decoder over its tokens, no cache."""
    sizes = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536}
    heads = {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
    return _transformer("WhisperForConditionalGeneration", "WhisperConfig", use_cache=False, **sizes, **heads)


class Dlrm(nn.Module):
    """Deep learning recommendation model (Naumov et al. 2019, arXiv:1906.00091) with small tables.

    Pairwise products of all embeddings and the dense features are one batched matrix product.
    """

    def __init__(self, dense: int = 13, tables: int = 26, rows: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables))
        sizes = (dense, 512, 256, width)
        self.bottom = nn.Sequential(*self._layers(sizes))
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(*self._layers((pairs + width, 512, 256)), nn.Linear(256, 2))
        self.register_buffer("pairs", torch.tril_indices(tables + 1, tables + 1, -1), persistent=False)

    @staticmethod
    def _layers(sizes: tuple[int, ...]) -> list[nn.Module]:
        return [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Logits of a click from (n, 13) numbers and (n, 26) categories."""
        x = self.bottom(dense)
        vectors = torch.stack([x, *(table(sparse[:, i : i + 1]) for i, table in enumerate(self.tables))], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return self.top(torch.cat([x, products[:, self.pairs[0], self.pairs[1]]], 1))


def dlrm() -> nn.Module:
    """DLRM with the published MLPs and tables of 1000 rows."""
    torch.manual_seed(0)
    return Dlrm().eval()


class Unet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with batch norm and padded convolutions, at half its width."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256, 512), classes: int = 2) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.down = nn.ModuleList(self._block(a, b) for a, b in zip(inputs, widths, strict=True))
        reverse = widths[::-1]
        steps = list(pairwise(reverse))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in steps)
        self.merge = nn.ModuleList(self._block(a, b) for a, b in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def _block(a: int, b: int) -> nn.Module:
        return nn.Sequential(_ConvNorm(a, b, 3), _ConvNorm(b, b, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel, (n, pixels, classes)."""
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x).flatten(2).transpose(1, 2)


def unet() -> nn.Module:
    """U-Net on 128 x 128 pixels."""
    torch.manual_seed(0)
    return _settled(Unet(), 2, 1, 128, 128)


class Tagger(nn.Module):
    """Embedding, two bidirectional LSTM layers, a tag for every token."""

    def __init__(self, tags: int = 17) -> None:
        super().__init__()
        self.embed = nn.Embedding(20_000, 300)
        self.lstm = nn.LSTM(300, 256, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(512, tags)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, tokens, tags)."""
        return self.head(self.lstm(self.embed(tokens))[0])


def lstm_tagger() -> nn.Module:
    """LSTM tagger on 40 tokens."""
    torch.manual_seed(0)
    return Tagger().eval()


class GraphConvolution(nn.Module):
    """Two graph convolutions (Kipf and Welling 2017): logits of a graph's mean node."""

    def __init__(self, features: int = 64, hidden: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, hidden), nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        """Logits from nodes (n, nodes, features) and normalised adjacency (n, nodes, nodes)."""
        x = torch.relu(adjacency @ self.first(nodes))
        x = torch.relu(adjacency @ self.second(x))
        return self.head(x.mean(1))


def gcn() -> nn.Module:
    """Graph-convolution network on graphs of 200 nodes."""
    torch.manual_seed(0)
    return GraphConvolution().eval()


def _images(channels: int, size: int) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    return lambda rng, n: {"x": rng.standard_normal((n, channels, size, size), dtype=np.float32)}


def _tokens(name: str, vocabulary: int, length: int) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    return lambda rng, n: {name: rng.integers(0, vocabulary, (n, length))}


def _graphs(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    edges = rng.random((n, 200, 200)) < 0.03
    linked = (edges | edges.transpose(0, 2, 1) | np.eye(200, dtype=bool)).astype(np.float32)
    degree = linked.sum(2, keepdims=True)
    nodes = rng.standard_normal((n, 200, 64), dtype=np.float32)
    return {"nodes": nodes, "adjacency": linked / np.sqrt(degree * degree.transpose(0, 2, 1))}


def _clicks(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    return {"dense": rng.standard_normal((n, 13), dtype=np.float32), "sparse": rng.integers(0, 1000, (n, 26))}


def _speech(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    sound = rng.standard_normal((n, 80, 3000), dtype=np.float32)
    return {"input_features": sound, "decoder_input_ids": rng.integers(0, 50_000, (n, 32))}


@dataclass(frozen=True)
class Entry:
    """One network: its inputs, how many examples to measure with and at a time, published MACs, source and difference.

    Sources that say FLOPs mean multiply-accumulates, except where noted.
    """

    inputs: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    examples: int
    batch_size: int
    published: float | None
    source: str
    difference: str = ""
    task: str = "classification"


_TOKEN = "token-classification"
_TORCHVISION = "torchvision, _ops in torchvision/models/"
_FOUR_TIMES = (
    "torchvision strides in the second convolution of a block, this network, as the paper, in the first: three 1 x 1 "
    "convolutions at a quarter of the positions, 3 * 77.07 M less"
)
_FIRST_LAYER = (
    "the paper's table 1 gives the first convolution 2.7 K weights and 34 M operations; 7 x 7 x 3 x 64 weights at "
    "112 x 112 positions make 118 M, 84 M more"
)
_BODY = "the source counts the body: the classifier adds 2 * 768"
_LSTM = "the flop counter does not look into the LSTM kernel"
ZOO: dict[str, Entry] = {
    "resnet50": Entry(_images(3, 224), 64, 8, 4.089e9, _TORCHVISION + "resnet.py", _FOUR_TIMES),
    "mobilenet_v2": Entry(_images(3, 224), 16, 8, 0.301e9, _TORCHVISION + "mobilenetv2.py"),
    "inception_v3": Entry(_images(3, 299), 8, 4, 5.713e9, _TORCHVISION + "inception.py"),
    "googlenet": Entry(_images(3, 224), 16, 8, 1.5e9, "Szegedy et al. 2015 (arXiv:1409.4842), section 1", _FIRST_LAYER),
    "shufflenet_v2": Entry(_images(3, 224), 16, 8, 0.145e9, _TORCHVISION + "shufflenetv2.py"),
    "bert_base": Entry(
        _tokens("input_ids", VOCABULARY, 128), 8, 4, 11.17e9, "README of cli99/flops-profiler, 128 tokens", _BODY
    ),
    "dlrm": Entry(_clicks, 4096, 256, None, ""),
    "vit_b16": Entry(_images(3, 224), 8, 4, 17.564e9, _TORCHVISION + "vision_transformer.py"),
    "gpt2": Entry(_tokens("input_ids", 50257, 64), 8, 4, None, "", task="language-model"),
    "whisper_tiny": Entry(_speech, 4, 2, None, "", task=_TOKEN),
    "unet": Entry(_images(1, 128), 16, 8, None, "", task=_TOKEN),
    "lstm_tagger": Entry(_tokens("tokens", 20_000, 40), 32, 8, None, "", _LSTM, _TOKEN),
    "gcn": Entry(_graphs, 512, 32, None, ""),
}
