"""What computes a batch's vectors: the one door to ONNX Runtime and TensorRT.

interface.py    what every engine offers
choose.py       which runtime computes an engine on this machine, and why; how a runtime is added
onnx.py         ONNX Runtime on a CPU
tensorrt.py     TensorRT on an NVIDIA GPU  gpu_plan.py (a loaded plan)  gpu_lock.py (processes that share a GPU)
microbatch.py   how a batch is cut for computing
layout.py       how a micro-batch's rows lie in a plan's inputs
gpus.py         which GPUs there are, and which package TensorRT is taken from
trt.py          TensorRT's module, for all code that uses it
"""
