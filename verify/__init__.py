"""Step 3: every row is accounted for, and a sample is computed again in PyTorch FP32 and compared."""
