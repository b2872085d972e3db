"""Step 0: a PyTorch encoder becomes an engine directory."""
