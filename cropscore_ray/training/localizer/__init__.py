"""The regressors of boxes: shared, by class, and how sure they are."""
