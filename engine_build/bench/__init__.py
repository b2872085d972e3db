"""How fast TensorRT and PyTorch compute a batch, and how far apart their vectors are.

cases.py     the batches that are computed
measure.py   which systems compute them  torch.py, tensorrt.py (one system each)
records.py   what was measured, and PyTorch's vectors, in files
table.py     the records as tables  chart.py (as a picture)
command.py   python -m engine_build bench

PyTorch and TensorRT need not live in one Python: each half can run alone. PyTorch's leaves its vectors in a file, which
TensorRT's compares its own with, and both add their records to one JSON file.
"""
