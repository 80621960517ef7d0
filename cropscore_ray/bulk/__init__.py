"""Runs of any size, on Ray Data: parts of a manifest become files of a table."""
