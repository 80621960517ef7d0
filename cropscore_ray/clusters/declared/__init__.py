"""Clusters on Kubernetes and on AWS: the files of cluster/, read as data and filled in."""
