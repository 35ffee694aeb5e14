"""The authors' weights on the Hugging Face hub: the list, and the download. Independent of any host.

Start at `fetch.fetch`, or at `fetch.fetch_known` for other files; `released` is the list, `client` the only module that
uses the network.
"""
