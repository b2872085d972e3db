"""What crosses a boundary between the engine builder, the producer, the workers and the verifier.

The one folder the other four share. It imports neither CUDA, PyTorch nor Celery.
"""
