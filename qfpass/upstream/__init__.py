"""Everything private or version-dependent that qfpass uses of torch, transformers and huggingface_hub.

There is one file per subject. No other part of the package uses a private name of theirs; ruff (TID251) and
`tests/upstream/test_shelf.py` check that. Each function offered here is an entry of one of two kinds
(`entry.py`):

- needed: the pass can't work without it. If it is missing, the call that needs it raises UpstreamError with
  the versions.
- only fast: an optimisation of `qfpass.Switches` uses it. If it is missing or fails, a plain fallback runs,
  with one warning.

An entry looks up private names when it is called, so `import qfpass` works with any version. Each has a test
in `tests/upstream` that fails when the private part it relies on changes: run these first on a new version of
torch or transformers.
"""
