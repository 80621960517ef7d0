"""Predictions in the formats of other programs, and our own tables for reading.

parquet   a run folder, a predictions folder or a file: read
ilsvrc    Kaggle's CSV: read and written
devkit    the ILSVRC development kit's text: read and written
coco      COCO's result list (JSON): written
csv       every row and column: written
"""
