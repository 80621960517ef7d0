"""What runs on a cluster: one short module per job, no arithmetic; and the recipes."""
