"""A view of one's own: noise, and a square that is missing (Cutout, DeVries & Taylor, arXiv 1708.04552)."""

import torch

import pipeline


class Settings(pipeline.ViewSettings):
    """What a config can say of it."""

    noise: float = 0.1
    """Largest standard deviation of the Gaussian noise on pixels between 0 and 1; each image draws its own."""
    missing: float = 0.3
    """Side of the square over that of the image."""


class Noisy(pipeline.View):
    """Noise, and a grey square at a place of each image's own."""

    Settings = Settings

    def view(self, images, draws):
        """Images in [0, 1], [B, C, S, S] -> a view of each. All that is random is drawn by ``draws``."""
        side = images.shape[-1]
        width = self.settings.noise * draws.uniform("width", 1, 1, 1)
        images = images + width * draws.normal("noise", *images.shape[1:])
        corner = draws.uniform("corner", 2) * (1 - self.settings.missing) * side
        at = torch.arange(side, device=images.device)[None] - corner[..., None].transpose(0, 1)  # [2, B, S]
        inside = (at >= 0) & (at < self.settings.missing * side)
        return images.masked_fill((inside[0][:, :, None] & inside[1][:, None])[:, None], 0.5)
