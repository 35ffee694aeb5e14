"""Several machines as one: the control channel between the driver, which is ComfyUI itself, and its workers.

Only small messages and API-JSON graphs go through it. Tensors do not: they travel by torch.distributed. Nothing here
imports torch.

messages     what driver and worker tell each other
schema       dataclasses to JSON and back, strictly
channel      how one reaches the other: `Listener` and `connect`; the protocol and what it protects against
connection   an open channel
handshake    the shared token; both sides prove that they know it
frames       one message as bytes, with its sequence number and HMAC
sockets      sockets with a deadline
"""
