"""What is learned on a frozen model."""
