"""pagedcore: serve language models from a library, with a paged KV cache."""
