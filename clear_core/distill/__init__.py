"""Distillation: the loss of CLEAR's authors, and the parts of a training step that need no ComfyUI.

attention   the student's windowed attention, with gradients for queries, keys, values and the pooling weight
loss        flow matching, distillation of the output, distillation of attention outputs
weights     which tensors are trained, and how they start
step        clipping and the optimizer
samples     latents and text embeddings to train on, as files
output      the result as a file of the released format
"""
