"""Networks, heads and regressors; from pixels to scores, votes and boxes."""
