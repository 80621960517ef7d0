"""Any image of Pillow's as the 8-bit RGB that networks and people look at."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB: deep grey values scaled, what is transparent on black."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns a 16-bit image white.
        values = np.asarray(image, np.float32)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("RGB")
