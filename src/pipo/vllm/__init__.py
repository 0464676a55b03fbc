"""PIPO inside vLLM, as a plugin: continuous batching, paged KV and prefix caching in pairs.

Read in this order: `plugin` (what vLLM loads), `model` (compressor, any stock decoder, MTP head), `pair_kv` (attention
in units of pairs), `runner` (a step: token 1, draft, accept or PAD), `scheduler` (PADs put in and hidden, prefix
hashes), `requests` and `settings` (what is refused), `hooks` (the inside parts of vLLM that all this holds on to).
Tokens are the unit of vLLM's scheduler, blocks and hashes; pairs are the unit of the model and its attention only.
"""
