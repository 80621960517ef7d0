"""Predictions become errors, beside baselines."""
