"""Distillation: the loss of CLEAR's authors, and all of a training run that needs no ComfyUI.

attention   the student's windowed attention, with gradients for queries, keys, values and the pooling weight
strategy    another strategy in the window's place, for comparisons; what it learns is trained beside the projections
loss        flow matching, distillation of the output, distillation of attention outputs
weights     which tensors are trained, and how they start
rebase      weights of one model, carried over to a fine-tune of it
trained     what is trained of the projections: weights in full, or a LoRA
recompute   activation checkpointing for blocks that add in place
settings    what a run is asked to do
draws       which image, how noisy, which noise
step        what gradients must be before a step
optimizers  AdamW, 8-bit AdamW, Prodigy
run         the steps, and the state on disk from which they go on
processes   several processes that share a step
sharding    a base of which each of several processes holds a part
samples     latents and text embeddings to train on, as files
output      the result as a file of the released format
"""
