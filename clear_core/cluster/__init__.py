"""Several machines that share a forward: the driver, which is ComfyUI itself, and its workers.

What they tell each other goes through a control channel, tensors through process groups of torch.distributed, which are
made directly: none is the default one of the process.

messages     what driver and worker tell each other
schema       dataclasses to JSON and back, strictly
channel      how one reaches the other: `Listener` and `connect`; the protocol and what it protects against
connection   an open channel
handshake    the shared token; both sides prove that they know it
frames       one message as bytes, with its sequence number and HMAC
sockets      sockets with a deadline

wire         the header before tensors, of a fixed size
transport    messages between ranks, and their way to the forward that they belong to
local        a transport between threads of one process
c10d         a transport between processes, over gloo

measure      one small measurement of a device and of a link
machines     what a machine computes and what its links carry
predict      the time of a forward on some machines
deal         how rows are dealt to machines that have joined
choose       which machines are worth it, and how many rows each gets
"""
