"""What each command does, here or on a cluster; and the recipes."""
