"""Conditional motion propagation (CMP): from an image and sparse motion hints to dense flow.

The published network is cut in two: the half that sees the image alone runs once per clip, the other once per frame.
Source: "Self-Supervised Learning via Conditional Motion Propagation" (CVPR 2019), configuration
`semiauto_annot/resnet50_vip+mpii_liteflow`, file `ckpt_iter_42000.pth.tar`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ..checkpoints import Weights, load_strict

FEATURES = 256
SPARSE_FEATURES = 16
BINS = 99
FLOW_LIMIT_PX = 50.0
"""Flow components are classified into BINS bins of equal width between -FLOW_LIMIT_PX and +FLOW_LIMIT_PX."""


class Bottleneck(nn.Module):
    """Residual block of ResNet-50 with a dilated 3 x 3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + residual)


def _residual_stage(inputs: int, width: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride, dilation)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, dilation=dilation) for _ in range(blocks - 1)))


class DilatedResNet(nn.Module):
    """ResNet-50 that keeps 1/8 of the resolution: its last two stages dilate instead of striding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _residual_stage(64, 64, blocks=3)
        self.layer2 = _residual_stage(256, 128, blocks=4, stride=2)
        self.layer3 = _residual_stage(512, 256, blocks=6, dilation=2)
        self.layer4 = _residual_stage(1024, 512, blocks=3, dilation=4)
        self.conv5 = nn.Conv2d(2048, FEATURES, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features at 1/8, 1/4 and 1/2 of the resolution."""
        half = F.relu(self.bn1(self.conv1(image)))
        quarter = self.layer1(F.max_pool2d(half, 3, stride=2, padding=1))
        eighth = self.conv5(self.layer4(self.layer3(self.layer2(quarter))))
        return eighth, quarter, half


def _conv_unit(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


class SkipConvolutions(nn.Module):
    """The part of the flow decoder that sees nothing but image features."""

    def __init__(self) -> None:
        super().__init__()
        self.skipconv4 = nn.Sequential(*_conv_unit(256, 128))
        self.skipconv2 = nn.Sequential(*_conv_unit(64, 32))


class CmpImageEncoder(nn.Module):
    """The half of CMP that depends on the image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = DilatedResNet()
        self.flow_decoder = SkipConvolutions()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the first frame.

        Args:
            image: float32 [1, 3, 384, 384], -1..1.

        Returns:
            Features [1, 256, 48, 48], and those of the skip connections [1, 128, 96, 96] and [1, 32, 192, 192].
        """
        features, quarter, half = self.image_encoder(image.to(self.image_encoder.conv1.weight.dtype))
        return features, self.flow_decoder.skipconv4(quarter), self.flow_decoder.skipconv2(half)


class SparseEncoder(nn.Module):
    """Small encoder of the motion hints to 1/8 of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(4, 16, 5, stride=2, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            *_conv_unit(16, SPARSE_FEATURES),
            nn.AvgPool2d(2),
        )

    def forward(self, hints: Tensor) -> Tensor:
        encoded: Tensor = self.features(hints)
        return encoded


class SharedConv2d(nn.Module):
    """A convolution over concatenated channels, of which one part is the same for the whole batch.

    A convolution is linear, so the shared part is convolved once, at batch size 1, and its result is broadcast.

    Args:
        conv: the convolution over all channels.
        shared: its input channels that come from the shared part.
    """

    def __init__(self, conv: nn.Conv2d, shared: slice) -> None:
        super().__init__()
        channels = list(range(conv.in_channels))
        self.shared = _select_inputs(conv, channels[shared], bias=True)
        self.own = _select_inputs(conv, [c for c in channels if c not in channels[shared]], bias=False)

    def forward(self, shared: Tensor, own: Tensor) -> Tensor:
        total: Tensor = self.shared(shared) + self.own(own)
        return total


def _select_inputs(conv: nn.Conv2d, channels: list[int], bias: bool) -> nn.Conv2d:
    part = nn.Conv2d(len(channels), conv.out_channels, 3, padding=1, bias=bias, device="meta")
    part.weight = nn.Parameter(conv.weight.detach()[:, channels].clone())
    if bias and conv.bias is not None:
        part.bias = nn.Parameter(conv.bias.detach().clone())
    return part


class PublishedFlowDecoder(nn.Module):
    """The layers of the flow decoder under their published names, without the skip convolutions."""

    def __init__(self) -> None:
        super().__init__()
        inputs = FEATURES + SPARSE_FEATURES
        for scale in (1, 2, 4, 8):
            units = [*_conv_unit(inputs, 128), *_conv_unit(128, 128), *_conv_unit(128, 128)]
            self.add_module(f"decoder{scale}", nn.Sequential(*([nn.MaxPool2d(scale)] if scale > 1 else []), *units))
        self.fusion8 = nn.Sequential(*_conv_unit(512, 256))
        self.fusion4 = nn.Sequential(*_conv_unit(256 + 128, 128))
        self.fusion2 = nn.Sequential(*_conv_unit(128 + 32, 64))
        self.head = nn.Conv2d(64, 2 * BINS, 1)


class PublishedCmpDecoder(nn.Module):
    """The half of CMP that runs per frame, under the published names; it holds weights and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.flow_encoder = SparseEncoder()
        self.flow_decoder = PublishedFlowDecoder()


class PropagationBranch(nn.Module):
    """Three convolutions at 1/8 of the resolution or below, so that hints spread over the image."""

    def __init__(self, layers: nn.Sequential, scale: int) -> None:
        super().__init__()
        units = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        self.scale = scale
        self.entry = SharedConv2d(units[0], slice(0, FEATURES))
        self.rest = nn.Sequential(nn.ReLU(), units[1], nn.ReLU(), units[2], nn.ReLU())

    def forward(self, image_features: Tensor, hints: Tensor) -> Tensor:
        size = hints.shape[-2:]
        if self.scale > 1:
            image_features, hints = (F.max_pool2d(x, self.scale) for x in (image_features, hints))
        spread: Tensor = self.rest(self.entry(image_features, hints))
        return spread if self.scale == 1 else _resize(spread, size)


class CmpFlowDecoder(nn.Module):
    """The half of CMP that depends on the motion hints.

    Args:
        published: the published layers, batch norms folded.
    """

    def __init__(self, published: PublishedCmpDecoder) -> None:
        super().__init__()
        layers = published.flow_decoder
        self.flow_encoder = published.flow_encoder
        self.branches = nn.ModuleList(
            PropagationBranch(layers.get_submodule(f"decoder{scale}"), scale)  # type: ignore[arg-type]
            for scale in (1, 2, 4, 8)
        )
        self.fusion8 = layers.fusion8
        self.fusion4 = SharedConv2d(layers.fusion4[0], slice(256, None))  # type: ignore[arg-type]
        self.fusion2 = SharedConv2d(layers.fusion2[0], slice(128, None))  # type: ignore[arg-type]
        self.head = layers.head

    def forward(
        self,
        image_features: Tensor,
        skip_features_4: Tensor,
        skip_features_2: Tensor,
        sparse_flow: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Propagate motion hints over the image, for several frames at once.

        Args:
            image_features: [1, 256, 48, 48], of CmpImageEncoder.
            skip_features_4: [1, 128, 96, 96], of CmpImageEncoder.
            skip_features_2: [1, 32, 192, 192], of CmpImageEncoder.
            sparse_flow: float32 [frames, 2, 384, 384], pixels; zero where there is no hint.
            mask: float32 [frames, 2, 384, 384], 1 where there is a hint.

        Returns:
            Flow from the image, float32 [frames, 2, 384, 384], pixels.
        """
        logits = self.classify(image_features, skip_features_4, skip_features_2, sparse_flow, mask)
        return _resize(expected_flow(logits), sparse_flow.shape[-2:])

    def classify(
        self,
        image_features: Tensor,
        skip_features_4: Tensor,
        skip_features_2: Tensor,
        sparse_flow: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Return the logits of the flow bins, x before y: [frames, 198, 192, 192]."""
        hints = torch.cat([sparse_flow, mask], dim=1).to(self.head.weight.dtype)
        hints = self.flow_encoder(hints)
        x = self.fusion8(torch.cat([branch(image_features, hints) for branch in self.branches], dim=1))
        x = F.relu(self.fusion4(skip_features_4, _resize(x, skip_features_4.shape[-2:])))
        x = F.relu(self.fusion2(skip_features_2, _resize(x, skip_features_2.shape[-2:])))
        logits: Tensor = self.head(x)
        return logits


def expected_flow(logits: Tensor) -> Tensor:
    """Return the expectation over the bins of each flow component, in float32: half precision cannot hold the centres.

    Args:
        logits: [frames, 2 * BINS, h, w], bins of x before bins of y.

    Returns:
        float32 [frames, 2, h, w], pixels.
    """
    width = 2 * FLOW_LIMIT_PX / BINS
    centres = (torch.arange(BINS, dtype=torch.float32, device=logits.device) + 0.5) * width - FLOW_LIMIT_PX
    x_then_y = torch.stack(logits.float().chunk(2, dim=1), dim=1)
    return (x_then_y.softmax(dim=2) * centres.view(BINS, 1, 1)).sum(dim=2)


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=True)


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm into the convolution right before it, in place; the module must be in evaluation mode."""
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, nn.Identity())
        else:
            fold_batch_norms(child)
        previous = name, child


def build_cmp_image_encoder(weights: Weights) -> CmpImageEncoder:
    """Build the image half of CMP in float32 evaluation mode.

    Raises:
        CheckpointError: the published file does not hold exactly the tensors of the network.
    """
    encoder, decoder = _empty_halves()
    _load_half(encoder, weights, other=decoder)
    return encoder


def build_cmp_flow_decoder(weights: Weights) -> CmpFlowDecoder:
    """Build the per-frame half of CMP in float32 evaluation mode.

    Raises:
        CheckpointError: the published file does not hold exactly the tensors of the network.
    """
    encoder, decoder = _empty_halves()
    _load_half(decoder, weights, other=encoder)
    return CmpFlowDecoder(decoder).eval()


def _empty_halves() -> tuple[CmpImageEncoder, PublishedCmpDecoder]:
    with torch.device("meta"):
        return CmpImageEncoder().eval(), PublishedCmpDecoder().eval()


def _load_half(half: nn.Module, weights: Weights, other: nn.Module) -> None:
    load_strict(half, weights.tensors("cmp"), weights.source("cmp"), unused=other.state_dict().keys())
    fold_batch_norms(half)
