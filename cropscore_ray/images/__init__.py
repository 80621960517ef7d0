"""From a URI to bytes, to pixels, to the crops that a network sees."""
