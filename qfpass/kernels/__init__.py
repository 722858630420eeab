"""Attention kernels behind one contract.

A kernel is attend(query, key, value, *, scale, causal=False, window=None, bias=None) -> (out, lse):
- query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv], one floating dtype, any
  strides, Sk at least 1; query head h reads kv head h // (Hq / Hkv);
- by default, every query sees every key. With `causal`, query i sees keys up to i; Sq == Sk. With
  `window` w, which implies causal, query i sees the w keys that end at i + Sk - Sq; Sk >= Sq. `bias`
  [1 or B, 1 or Hq, Sq, Sk] is added to the logits; -inf hides a key. It excludes the other two. Every
  query must see a key. In eager mode, a kernel raises InputError for other lengths and forms;
- out [B, Hq, Sq, Dv] in the query's dtype; lse [B, Hq, Sq] float32, the natural log of the sum of
  the exponentials of the logits `scale * <query, key> + bias`.

Some also take softcap=c, for logits c * tanh(scale * <query, key> / c) + bias.

Either length may be symbolic, and Sk unbacked.

Files: `choose` (the kernel for a device, dtype and form), `kernel` (a kernel and its name), `form` (what the
logits are), `reference` (plain float32), `operands` (checks, layouts and masks), `join` (two calls over
disjoint keys as one), `cpu` and `cuda` (each device's kernels).
"""
