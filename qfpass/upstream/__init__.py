"""Everything private or version-dependent that qfpass uses of torch, transformers and huggingface_hub.

One file a subject. Nothing else in the package imports or reaches a private name of theirs; ruff (TID251) and
`tests/upstream/test_shelf.py` see to that. Whatever a file here offers is an entry of one of two kinds
(`entry.py`):

- needed: without it the pass can't work. Where it is missing, the call that needs it raises UpstreamError,
  which names the versions.
- only fast: an optimisation of `qfpass.Switches` uses it. Where it is missing or fails, its plain way runs,
  with one warning.

Each entry is looked for when it is used, so that `import qfpass` works with any version, and has a test in
`tests/upstream` that fails when the promise that it stands on has changed: the tests to run first on a new
version of torch or transformers.
"""
