"""One reader a kind of source: from its files to image records."""
