"""A run as one HTML page: what people look at."""
