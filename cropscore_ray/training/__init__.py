"""The three trainings: crops and SGD for the networks, batched Adam for the regressors."""
