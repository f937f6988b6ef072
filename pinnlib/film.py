"""A moving picture in a notebook."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


class Film:
    """A moving picture that a notebook shows without a script.

    Who asks for reduced motion sees the last frame instead; everybody can fold the film to stop it.

    Args:
        figure: what moves; it is closed afterwards, so that it is not shown once more.
        draw: changes the figure, given the number of the frame.
        frames: number of frames.
        alt: what the film shows, for those who cannot see it.
        fps: frames per second.

    Raises:
        ValueError: if ``frames`` or ``fps`` is smaller than 1.

    >>> figure, ax = plt.subplots(figsize=(2, 1))
    >>> (line,) = ax.plot([0, 1], [0, 1])
    >>> def draw(frame):
    ...     line.set_ydata([0, frame])
    >>> Film(figure, draw, frames=3, alt="A line that turns.")
    A line that turns.
    """

    def __init__(
        self, figure: Figure, draw: Callable[[int], None], frames: int, *, alt: str, fps: int = 5
    ) -> None:
        for name, count in {"frames": frames, "fps": fps}.items():
            if count < 1:
                raise ValueError(f"{name} is {count}: use 1 or more")
        self.alt = alt
        canvas: Any = FigureCanvasAgg(figure)
        pictures = []
        try:
            for frame in range(frames):
                draw(frame)
                canvas.draw()
                figure.set_layout_engine("none")  # once for all frames, which takes half the time
                pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
        finally:
            plt.close(figure)
        moving, still = BytesIO(), BytesIO()
        series = {"append_images": pictures[1:], "duration": 1000 // fps, "loop": 0}
        pictures[0].save(moving, "webp", save_all=True, **series)
        pictures[-1].save(still, "webp")
        self.moving, self.still = moving.getvalue(), still.getvalue()

    def __repr__(self) -> str:
        return self.alt

    def _repr_html_(self) -> str:
        moving, still = (
            f"data:image/webp;base64,{b64encode(picture).decode()}"
            for picture in (self.moving, self.still)
        )
        return (
            "<details open><summary>Film (fold to stop it)</summary><picture>"
            f'<source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
            f'<img src="{moving}" alt="{html.escape(self.alt)}"></picture></details>'
        )
