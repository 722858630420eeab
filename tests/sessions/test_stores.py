"""Stores of equal layers lie in one allocation, and every layer sees its own part of it."""

import pytest
import torch
from bounded import compiled, llama
from rows import padded, text
from tiny import FAMILIES

import qfpass
from qfpass import Session
from qfpass.decoder.overwritten_slots import slots_of_next
from qfpass.sessions.stores import Stores


def filled(session: Session, rows: int) -> Stores:
    """The session's stores for `rows` rows, every number another."""
    session.allocate(rows)
    for stack in session.stores.stacks:
        for tensor in stack.store:
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    return session.stores


def test_equal_layers_share_an_allocation() -> None:
    (stack,) = filled(compiled(llama()).session(), 3).stacks
    assert stack.layers == (0, 1)
    assert stack.store.keys.shape[:2] == (2, 3)
    assert stack.flat.keys.data_ptr() == stack.store.keys.data_ptr()


def test_layers_come_in_graph_order_whatever_their_stacks() -> None:
    model = compiled(FAMILIES["gemma3"](window=7, layers=4))
    stores = filled(model.session(), 2)
    assert [stack.layers for stack in stores.stacks] == [(0, 2), (1, 3)]
    for stack in stores.stacks:
        for i, layer in enumerate(stack.layers):
            assert stores[layer].keys.data_ptr() == stack.store.keys[i].data_ptr()
            assert all(map(torch.equal, stores[layer], (t[i] for t in stack.store)))


def test_a_map_changes_a_copy() -> None:
    stores = filled(compiled(llama()).session(), 2)
    before = [t.clone() for store in stores for t in store]
    first = stores.map(lambda tensor: tensor[:, :1].clone())
    assert [len(store.keys) for store in first] == [1, 1]
    for store in first:
        store.keys.zero_()
    assert all(map(torch.equal, before, (t for store in stores for t in store)))


def test_rows_read_one_by_one_after_a_batch_compile_what_separate_stores_would() -> None:
    """Where layers lie in their stack isn't what a graph is compiled for."""
    model = qfpass.compile(
        FAMILIES["gemma3"](window=8, layers=6), budget=16, chunk=8, recent=4, context_length=64, verify=False,
        score="recency", backend=lambda graph, inputs: graph.forward,
    )  # fmt: skip
    model(torch.cat([text(20, seed) for seed in range(6)]))
    model(**padded([text(3 + 2 * i, seed=i) for i in range(6)], "left"))
    # A chunk's and the head's for six rows and for one, and a step's for one.
    assert qfpass.report(model).graphs_compiled == 5


def test_contents_are_taken_over() -> None:
    session = compiled(llama()).session()
    stores, other = filled(session, 2), Stores.empty(session._layers, 2, torch.float32, torch.device("cpu"))
    other.copy_(stores)
    mine, theirs = ([t for store in each for t in store] for each in (stores, other))
    assert all(map(torch.equal, mine, theirs))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(mine, theirs, strict=True))


def test_a_step_is_aimed_at_every_bounded_layers_own_slots() -> None:
    stores = filled(compiled(FAMILIES["gemma3"](window=7, layers=4)).session(), 2)
    stores.set_write_slots([torch.arange(2 * 2 * 2).view(4, 2, 1)])
    found = {layer: slot.flatten().tolist() for layer, slot in stores.write_slots.items()}
    assert found == {1: [0, 1, 2, 3], 3: [4, 5, 6, 7]}


@pytest.mark.parametrize("budget", [16, 9])
def test_slots_of_the_next_token_are_those_that_a_watch_finds(budget: int) -> None:
    """Of full stores, before and after a step has changed what goes next, of all rows and of each alone."""
    model = compiled(FAMILIES["gemma3"](window=7, layers=4), sinks=2, recent=3)
    session = model.session(budget=budget)
    model(torch.cat([text(30), text(30, seed=1)]), past_key_values=session)
    for _ in range(2):
        (watched,) = model.qfpass_decoder.watch(session.stores, session.rows, session.row_sizes).write_slots(
            session.stores
        )
        (taken,) = slots_of_next(session.stores, session.rows, session.row_sizes, session.device)
        assert torch.equal(watched.flatten(0, 1), taken) and (taken < budget).all()
        for row in range(2):
            (alone,) = slots_of_next(
                session.stores_of(row), session.rows[row : row + 1], [session.sizes], session.device
            )
            assert torch.equal(alone, taken.view(2, 2, 2, 1)[:, row])
        before = [session.stores[layer].positions.clone() for layer in (1, 3)]
        model(torch.tensor([[5], [7]]), past_key_values=session)
        after = [session.stores[layer].positions for layer in (1, 3)]
        changed = torch.stack(list(map(torch.ne, before, after))).nonzero()[:, -1]
        assert changed.tolist() == taken.flatten().tolist()


def test_a_text_may_go_on_outside_of_inference_mode() -> None:
    model = compiled(FAMILIES["llama"]())
    session, other = model.session(), model.session()
    with torch.inference_mode():
        model(text(30), past_key_values=session)
    with torch.no_grad():
        model(text(30), past_key_values=other)
        logits = [model(text(1), past_key_values=s).logits for s in (session, other)]
    torch.testing.assert_close(*logits)
