"""What networks learn from: shares of the manifest, crops, regions, batches."""
