"""Attention and layers against torch's own, and cached decoding against whole passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tegu.datasets.tokens import END, PAD, START
from tegu.errors import InputError
from tegu.models.mlc import Attention, Bank, DecoderLayer, EncoderLayer, StudyTransformer, attend

WIDTH, HEADS, INNER = 16, 4, 24


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def shaken(module: nn.Module, seed: int = 1) -> nn.Module:
    """In float64, with every parameter away from its initial value, biases and gains too."""
    module.double()
    for i, p in enumerate(module.parameters()):
        p.data += 0.2 * drawn(*p.shape, seed=seed + i)
    return module


def built() -> StudyTransformer:
    model = StudyTransformer(9, 8, width=WIDTH, heads=HEADS, feedforward=INNER, longest=6)
    return shaken(model)  # type: ignore[return-value]


def alike(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    """Torch's module with the weights of ours."""
    theirs.double().load_state_dict(ours.state_dict())
    return theirs


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)


def test_two_banks_are_one_softmax() -> None:
    """Against torch.nn.MultiheadAttention over keys one after another."""
    ours = shaken(Attention(WIDTH, HEADS, torch.Generator().manual_seed(0)))
    theirs = alike(ours, nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    x, own, shared = drawn(3, 4, WIDTH), drawn(3, 5, WIDTH, seed=1), drawn(7, WIDTH, seed=2)
    real = torch.tensor([1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    found = ours(x, ours.bank(own, MASK[:, None]), ours.bank(shared, real))
    keys = torch.cat([own, shared.expand(3, -1, -1)], 1)
    hidden = ~torch.cat([MASK, real.expand(3, -1)], 1)
    expected, _ = theirs(x, keys, keys, key_padding_mask=hidden)
    torch.testing.assert_close(found, expected)


def test_large_scores_do_not_overflow() -> None:
    query = torch.full((1, 1, 1, 1), 1e4)
    key, value = torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[[2.0], [3.0]]])
    bank = Bank(key, value, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(attend(query, None, bank), torch.full((1, 1, 1, 1), 2.0))


def test_encoder_layer_is_torchs() -> None:
    ours = shaken(EncoderLayer(WIDTH, HEADS, INNER, torch.Generator().manual_seed(0)))
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, INNER, 0.0, "gelu", batch_first=True, norm_first=True
    )
    alike(ours, theirs).train()  # its fast path for inference returns zeros for padding
    x = drawn(3, 5, WIDTH)
    torch.testing.assert_close(
        ours(x, MASK, None)[MASK], theirs(x, src_key_padding_mask=~MASK)[MASK]
    )
    over = theirs(x.reshape(1, 15, WIDTH), src_key_padding_mask=~MASK.reshape(1, 15))
    torch.testing.assert_close(ours.over(x, MASK)[MASK], over.view(3, 5, WIDTH)[MASK])


def test_decoder_layer_is_torchs() -> None:
    ours = shaken(DecoderLayer(WIDTH, HEADS, INNER, torch.Generator().manual_seed(0)))
    theirs = nn.TransformerDecoderLayer(
        WIDTH, HEADS, INNER, 0.0, "gelu", batch_first=True, norm_first=True
    )
    alike(ours, theirs)
    x, own, shared = drawn(3, 4, WIDTH), drawn(3, 5, WIDTH, seed=1), drawn(7, WIDTH, seed=2)
    real = torch.tensor([1, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
    cross = ours.multihead_attn
    found, _ = ours(x, cross.bank(own, MASK[:, None]), cross.bank(shared, real))
    expected = theirs(
        x,
        torch.cat([own, shared.expand(3, -1, -1)], 1),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64),
        tgt_is_causal=True,
        memory_key_padding_mask=~torch.cat([MASK, real.expand(3, -1)], 1),
    )
    torch.testing.assert_close(found, expected)


COMMANDS = torch.tensor([[3, 4, 5, PAD], [6, PAD, PAD, PAD], [4, 4, PAD, PAD]])
OUTPUTS = torch.tensor([[3, 4, END, PAD], [5, END, PAD, PAD], [7, 6, 5, END]])
REAL = torch.tensor([True, True, True])
ASKED = torch.tensor([[6, 4, PAD, PAD], [8, 5, 3, 4]])


def test_greedy_decoding_is_a_whole_pass_over_what_was_written() -> None:
    """Each step through the cache gives what teacher forcing gives with the answer so far."""
    model = built()
    model.symbol.data *= 20
    model.out.weight.data = model.symbol.data.roll(1, 0)  # each symbol tends to call for the next
    study = model.study(COMMANDS, OUTPUTS, REAL)
    found = model.generate(study, ASKED)
    written = found.argmax(-1)
    assert len(written.unique()) > 2, "one token again and again tests no cache"
    torch.testing.assert_close(model.answer(study, ASKED, written), found)


def test_a_token_depends_on_those_before_it_alone() -> None:
    model = built()
    study = model.study(COMMANDS, OUTPUTS, REAL)
    targets = torch.tensor([[3, 4, 5, 6, END, PAD], [4, 4, 3, END, PAD, PAD]])
    other = targets.clone()
    other[:, 3:] = 7
    one, two = model.answer(study, ASKED, targets), model.answer(study, ASKED, other)
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])


def test_the_whole_against_torchs_layers() -> None:
    """The model written again with torch.nn layers: source, memory, decoder."""
    model = built()
    targets = torch.tensor([[3, 4, 5, END], [6, END, PAD, PAD]])
    found = model.answer(model.study(COMMANDS, OUTPUTS, REAL), ASKED, targets)

    def place(x: Tensor) -> Tensor:
        at, i = torch.arange(x.shape[1]).double()[:, None], torch.arange(WIDTH)
        angle = at / 10_000 ** ((i - i % 2) / WIDTH)
        return x + torch.where(i % 2 == 0, angle.sin(), angle.cos())

    encoder = [
        alike(
            layer,
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, INNER, 0.0, "gelu", batch_first=True, norm_first=True
            ),
        )
        for layer in model.encoder
    ]
    decoder = [
        alike(
            layer,
            nn.TransformerDecoderLayer(
                WIDTH, HEADS, INNER, 0.0, "gelu", batch_first=True, norm_first=True
            ),
        )
        for layer in model.decoder
    ]
    for q in range(2):
        query = place(model.word[ASKED[q]][None] + model.asked)
        examples = torch.cat(
            [place(model.word[COMMANDS]), place(model.symbol[OUTPUTS])], 1
        ).reshape(1, 24, WIDTH)
        source = torch.cat([query, examples], 1)
        real = torch.cat([ASKED[q], torch.cat([COMMANDS, OUTPUTS], 1).flatten()]) != PAD
        group = torch.cat([torch.zeros(4), 1 + torch.arange(3).repeat_interleave(8)])
        same = group[:, None] == group
        reach = {"example": same, "episode": same | (group > 0)}
        for layer, how in zip(encoder, model.encoder_reach, strict=True):
            hidden = ~(reach[how] & real) & ~torch.eye(28, dtype=torch.bool)  # no empty row
            source = layer(source, src_mask=hidden)
        memory = model.norm_memory(source)
        before = torch.cat([torch.tensor([START]), targets[q, :-1]])
        x = place(model.symbol[before][None])
        causal = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
        for layer in decoder:
            x = layer(x, memory, tgt_mask=causal, memory_key_padding_mask=~real[None])
        torch.testing.assert_close(found[q], model.out(model.norm_out(x))[0])


def test_padding_changes_nothing() -> None:
    """Longer rows, examples that only pad, and what they hold."""
    model = built()
    targets = torch.tensor([[3, 4, END], [5, END, PAD]])
    dense = model.answer(model.study(COMMANDS, OUTPUTS, REAL), ASKED, targets)
    commands = nn.functional.pad(COMMANDS, (0, 2, 0, 1), value=PAD)
    outputs = nn.functional.pad(OUTPUTS, (0, 3, 0, 1), value=PAD)
    commands[-1], outputs[-1] = 5, 4
    study = model.study(commands, outputs, torch.tensor([True, True, True, False]))
    padded = model.answer(study, nn.functional.pad(ASKED, (0, 1)), targets)
    torch.testing.assert_close(padded, dense)


def test_the_order_of_examples_does_not_matter() -> None:
    model = built()
    one = model(COMMANDS, OUTPUTS, REAL, ASKED)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(COMMANDS[order], OUTPUTS[order], REAL, ASKED), one)


def test_examples_matter() -> None:
    model = built()
    one = model(COMMANDS, OUTPUTS, REAL, ASKED)
    swapped = OUTPUTS[torch.tensor([1, 0, 2])]
    assert not torch.allclose(model(COMMANDS, swapped, REAL, ASKED), one)


def test_a_reach_that_there_is_not() -> None:
    with pytest.raises(InputError, match="reach of an encoder layer"):
        StudyTransformer(5, 5, encoder=("world",))


def test_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(InputError, match="a width of 10 for 4 heads"):
        StudyTransformer(5, 5, width=10, heads=4)
