"""Images, channels last in every engine; PyTorch's functions see them in its own order."""

from functools import partial

import reference
from accelerated.layers import convolution
from benchmarks.cases import pytorch
from benchmarks.cases.case import Case, module
from benchmarks.cases.pytorch import channels_first, channels_last, functional

CASES = {
    "nearest_upsample": lambda s: Case(
        partial(reference.nearest_upsample, factor=2),
        partial(convolution.nearest_upsample, factor=2),
        lambda x: channels_last(functional.interpolate(channels_first(x), scale_factor=2)),
        (s.image(),),
    ),
    "patches": lambda s: Case(
        partial(reference.patches, size=s.patch),
        partial(convolution.patches, size=s.patch),
        partial(pytorch.patches, size=s.patch),
        (s.photo(),),
    ),
    "assemble": lambda s: Case(
        partial(reference.assemble, size=s.patch, grid=(14, 14)),
        partial(convolution.assemble, size=s.patch, grid=(14, 14)),
        partial(pytorch.assemble, size=s.patch, grid=(14, 14)),
        (s.in_patches(),),
    ),
    "patch_embed": lambda s: module(
        partial(reference.patch_embed, size=s.patch),
        partial(convolution.PatchEmbed, 3, s.width, size=s.patch),
        lambda p, x: (
            functional.conv2d(channels_first(x), p["kernel"], p["bias"], stride=s.patch)
            .flatten(2)
            .mT
        ),
        s.photo(),
    ),
    "conv2d": lambda s: module(
        partial(reference.conv2d, padding="SAME"),
        partial(convolution.Conv2d, s.channels, s.channels, (3, 3), padding="SAME"),
        lambda p, x: channels_last(
            functional.conv2d(channels_first(x), p["kernel"], p["bias"], padding="same")
        ),
        s.image(),
    ),
    "max_pool": lambda s: Case(
        partial(reference.max_pool, window=2),
        partial(convolution.max_pool, window=2),
        lambda x: channels_last(functional.max_pool2d(channels_first(x), 2)),
        (s.image(),),
    ),
}
