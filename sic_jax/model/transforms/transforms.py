"""What a family of transforms is: a config that builds g_a and g_s."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from sic_jax.fields import Family
from sic_jax.model.levels import LevelConfig
from sic_jax.model.tree import Params


@dataclass(frozen=True, kw_only=True)
class Transforms(Family, ABC):
    """Analysis g_a and synthesis g_s.

    Images are NHWC in [0, 1], with sides that are multiples of `stride`. Parameters and results are
    float32; `dtype` is what features are computed in.
    """

    stride: ClassVar[int]
    """Pixels that a latent position covers in each direction."""
    sized: ClassVar[bool] = False
    """Whether the modules take one more argument, the sizes of pictures that do not fill their
    array, in latent positions (`sic_jax.sizes.Size`). Then the codec compiles a program a bucket of
    sizes, else one a size."""

    @abstractmethod
    def analysis(
        self, levels: LevelConfig, dtype: DTypeLike | None = None, remat: bool = False
    ) -> nn.Module:
        """g_a: a module of images [B, H, W, 3].

        Its result is [B, H/stride, W/stride, levels.num_base_channels], unquantised.

        Args:
            levels: The channels of y.
            dtype: Of features.
            remat: Whether gradients compute the features again instead of keeping them.
        """

    @abstractmethod
    def synthesis(
        self, levels: LevelConfig, dtype: DTypeLike | None = None, remat: bool = False
    ) -> nn.Module:
        """g_s: a module of y_hat [B, h, w, levels.num_channels] and levels int [B], 1-based.

        Its result is [B, stride * h, stride * w, 3], not clipped. Arguments are as for `analysis`.
        """

    @property
    def analysis_reach(self) -> int | None:
        """Latent positions beyond its own that a latent depends on; None: on the whole picture."""
        return None

    @property
    def synthesis_reach(self) -> int | None:
        """Latent positions beyond its own that a pixel depends on; None: on all of them."""
        return None

    def check(self, levels: LevelConfig) -> None:
        """Check that the transforms can have these channels.

        Raises:
            ValueError: If they cannot.
        """

    def start(
        self,
        params: Params,
        levels: LevelConfig,
        patches: Callable[[int], NDArray[np.float32]],
    ) -> Params:
        """Parameters that a training run from scratch starts with.

        Args:
            params: Random parameters of the model.
            levels: The channels of y.
            patches: Gives patches of training images of a side: [N, side * side * 3] in
                [-0.5, 0.5].
        """
        return params

    def learning_rate_scale(self, path: str) -> float:
        """What the learning rate of a parameter is multiplied by.

        Args:
            path: Of the parameter, such as ``g_a/linear``.
        """
        return 1.0
