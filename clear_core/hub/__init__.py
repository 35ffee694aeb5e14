"""The authors' weights on the Hugging Face hub: which there are, and how one is fetched. Knows nothing of any host.

Start at `fetch.fetch`; `released` is the list, `client` the only place that speaks to the network.
"""
