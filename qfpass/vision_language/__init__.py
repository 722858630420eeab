"""Vision-language models: their text decoder is compiled, and everything else runs as it is.

parts: find a model's text decoder. text_model: the compiled decoder in its place. compiled_model: a copy of
the whole model's object around it.
"""
