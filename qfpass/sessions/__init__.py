"""Sessions: the state of a batch of texts. In: what a decoder has read; out: stores, counts, an HF cache.

session: Session, which users hold. hf_cache: its counts, and its answers to transformers' Cache API. stores:
the tensors of all layers. rows: how far each row is, its columns in a call, the logits that it returns.
read_ids: the token ids read so far. crop: what was read is taken back, by the journal of what calls have
overwritten.
files: save and load. single_user: one thread at a time, cancelling.
"""
