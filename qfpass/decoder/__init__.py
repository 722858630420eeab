"""The decoder: token ids and a session in, logits out; the session's stores are updated in place.

decoder: Decoder, its compiled graphs run on stores. graphs_by_ends: those that take embeddings or give hidden
states. graph_inputs: what graphs read beside ids and positions. read: read a call's tokens into a session, in
chunks and steps. row_sessions: sessions that share one allocation and step together. undo: restore a session
after a failed call. overwritten_slots: what a step is about to overwrite. taken_back: how many tokens can be
taken back. overflow: move stored keys where a text passes the context length. budget: a session with fewer
slots. in_turn: a fair lock.
"""
