"""Recurrent kernels (LSTM, GRU, RNN and their cells) written out as their matrix products.

A fused kernel computes all steps, layers and directions in one opaque call. Written out, every weight matrix is one
product: the input product of all time steps at once, the hidden product once a step. Equations and order of the gates
are those of `torch.nn.LSTM`, `torch.nn.GRU` and `torch.nn.RNN`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]


@dataclass(frozen=True)
class _Weights:
    """Weights of one layer in one direction; ``projection`` is that of an LSTM with ``proj_size``."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None


def _lstm_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    (reset, update, new), (hidden_reset, hidden_update, hidden_new) = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    update = (update + hidden_update).sigmoid()
    new = (new + (reset + hidden_reset).sigmoid() * hidden_new).tanh()
    return ((1.0 - update) * new + update * state[0],)


def _tanh_step(from_input: Tensor, from_hidden: Tensor, _: State) -> State:
    return ((from_input + from_hidden).tanh(),)


def _relu_step(from_input: Tensor, from_hidden: Tensor, _: State) -> State:
    return ((from_input + from_hidden).relu(),)


def _advance(step: Step, from_input: Tensor, state: State, weights: _Weights) -> State:
    state = step(from_input, F.linear(state[0], weights.hidden, weights.hidden_bias), state)
    return state if weights.projection is None else (F.linear(state[0], weights.projection), *state[1:])


def _run_direction(
    step: Step, data: Tensor, sizes: Sequence[int], state: State, weights: _Weights, backward: bool
) -> tuple[Tensor, State]:
    """One layer in one direction over rows (all steps one after the other), of which step t has the first sizes[t].

    Sequences are sorted by falling length, so those that have ended are the last rows of the state.
    """
    from_input = F.linear(data, weights.input, weights.input_bias).split(list(sizes))
    outputs: list[Tensor] = []
    initial, state = state, tuple(part[: sizes[-1 if backward else 0]] for part in state)
    ended: list[State] = []
    for t in reversed(range(len(sizes))) if backward else range(len(sizes)):
        rows = len(state[0])
        if sizes[t] > rows:
            state = tuple(torch.cat([now, first[rows : sizes[t]]]) for now, first in zip(state, initial, strict=True))
        elif sizes[t] < rows:
            ended.append(tuple(part[sizes[t] :] for part in state))
            state = tuple(part[: sizes[t]] for part in state)
        state = _advance(step, from_input[t], state, weights)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return torch.cat(outputs[::-1] if backward else outputs), state


@dataclass(frozen=True)
class _Options:
    step: Step
    states: int
    dropout: float
    training: bool
    bidirectional: bool


def _run_layers(
    options: _Options, data: Tensor, sizes: Sequence[int], hx: Sequence[Tensor], weights: Sequence[_Weights]
) -> tuple[Tensor, ...]:
    """All layers and directions; (output rows, final hidden state, and for an LSTM final cell state)."""
    directions = 2 if options.bidirectional else 1
    finals: list[State] = []
    for layer in range(len(weights) // directions):
        if layer and options.dropout:
            data = F.dropout(data, options.dropout, options.training)
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            state = tuple(part[index] for part in hx)
            output, final = _run_direction(options.step, data, sizes, state, weights[index], direction == 1)
            outputs.append(output)
            finals.append(final)
        data = outputs[0] if directions == 1 else torch.cat(outputs, -1)
    return data, *(torch.stack([final[part] for final in finals]) for part in range(options.states))


def _split_weights(flat: Sequence[Tensor], biased: bool, runs: int) -> list[_Weights]:
    """Weights of each layer and direction from torch's flat list of them."""
    each = len(flat) // runs
    groups = [flat[start : start + each] for start in range(0, len(flat), each)]
    biases = 2 if biased else 0
    return [_Weights(*group[:2], *(group[2:4] if biased else (None, None)), *group[2 + biases :]) for group in groups]


def _kernel(step: Step, states: int) -> Callable[..., tuple[Tensor, ...]]:
    """Stand-in for a fused kernel, in both of its forms: a padded tensor, or packed rows with their batch sizes."""

    def run(*args: Any) -> tuple[Tensor, ...]:
        packed = not isinstance(args[3], bool)
        x, sizes, hx, flat, biased, layers, dropout, training, bidirectional, *batch_first = (
            args if packed else (args[0], None, *args[1:])
        )
        options = _Options(step, states, dropout, training, bidirectional)
        weights = _split_weights(flat, biased, layers * (2 if bidirectional else 1))
        hx = [hx] if isinstance(hx, Tensor) else hx
        if packed:
            return _run_layers(options, x, sizes.tolist(), hx, weights)
        steps_first = x.transpose(0, 1) if batch_first[0] else x
        steps, batch = steps_first.shape[:2]
        rows, *finals = _run_layers(options, steps_first.flatten(0, 1), [batch] * steps, hx, weights)
        y = rows.unflatten(0, (steps, batch))
        return y.transpose(0, 1) if batch_first[0] else y, *finals

    return run


def _cell(step: Step) -> Callable[..., Any]:
    """Stand-in for the kernel of one step."""

    def run(
        x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        state = _advance(step, F.linear(x, w_ih, b_ih), state, _Weights(w_ih, w_hh, b_ih, b_hh))
        return state[0] if isinstance(hx, Tensor) else state

    return run


KERNELS: dict[str, Callable[..., Any]] = {
    "lstm": _kernel(_lstm_step, 2),
    "gru": _kernel(_gru_step, 1),
    "rnn_tanh": _kernel(_tanh_step, 1),
    "rnn_relu": _kernel(_relu_step, 1),
    "lstm_cell": _cell(_lstm_step),
    "gru_cell": _cell(_gru_step),
    "rnn_tanh_cell": _cell(_tanh_step),
    "rnn_relu_cell": _cell(_relu_step),
}
