"""What networks learn: the losses of crops, of heads, of votes and of boxes."""
