"""An image set becomes a manifest: one row an image, with its class and its boxes."""
